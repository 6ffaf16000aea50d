"""What a model is shown beside the picture as it is: noisy copies, or a path to it."""

from __future__ import annotations

from dataclasses import dataclass

from vlmflow.errors import InputError
from vlmflow.parameters import check_integer


@dataclass(frozen=True)
class Noise:
    """Noisy pictures that a map is averaged over.

    ``copies`` of them, with noise of this standard deviation in normalised pixel values, drawn
    from ``seed``.
    """

    copies: int
    deviation: float
    seed: int


MOST_STEPS = 1000
"""Points that a path may have; finding them takes a matrix of so many rows and columns."""

BASELINES = ("mean", "zero")
"""Where a path of image embeddings starts, see :class:`Path`."""


@dataclass(frozen=True)
class Path:
    """A straight path of the image embeddings, from a baseline ``x'`` to the picture's own ``x``.

    A map is the integral along it, by Gauss and Legendre's rule with ``steps`` points
    ``x' + a (x - x')``. ``baseline`` is ``"mean"`` (every image token is given the mean of all of
    the prompt's) or ``"zero"``.
    """

    steps: int
    baseline: str = "mean"

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, least=1, most=MOST_STEPS)
        if self.baseline not in BASELINES:
            raise InputError(
                f"baseline={self.baseline!r} is none of {', '.join(map(repr, BASELINES))}"
            )
