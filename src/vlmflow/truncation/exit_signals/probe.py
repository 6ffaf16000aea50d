"""A linear probe on the states of the last token and of the text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView

LARGEST = 3e38
"""Largest weight: states are float32."""


@dataclass(frozen=True)
class Probe(ExitSignal):
    """``w . [x_last, mean of x_text] + b`` at the input of a layer, each layer its own.

    Parameters
    ----------
    weights : tuple of (layer, b, w)
        Fitted; w has one number per channel of the last state, then of the mean.

    Raises
    ------
    InputError
        If they are anything else, as a file may have it.
    """

    name = "probe"
    summary = "a linear probe on the last token's and the mean text token's state"
    source = "linear probes (Alain and Bengio 2016, arXiv 1610.01644)"
    reads = "hidden"

    weights: tuple[tuple[int, float, tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        rows = self.weights if isinstance(self.weights, tuple) else (self.weights,)
        if not all(map(_is_fitted, rows)):
            raise InputError(
                "the weights of a probe are (layer, b, w) for each of its layers: an integer, a "
                "finite number and a tuple of these"
            )

    @property
    def title(self) -> str:
        """Its name: the weights are too many to show."""
        return self.known_as()

    def value(self, seen: ExitView) -> Tensor:
        """Weigh; see :meth:`ExitSignal.value`."""
        for layer, bias, weights in self.weights:
            if layer == seen.layer:
                width = len(seen.last)
                if len(weights) != 2 * width:
                    raise InputError(
                        f"the probe of layer {layer} has {len(weights)} weights, but states of "
                        f"{width} channels take {2 * width}"
                    )
                both = seen.last.new_tensor(weights)
                return both[:width] @ seen.last + both[width:] @ seen.mean_text + bias
        raise InputError(f"the probe has no weights for layer {seen.layer}; fit it there first")


def _is_fitted(row: object) -> bool:
    """Whether it is (layer, b, w)."""
    if not isinstance(row, tuple) or len(row) != 3 or not isinstance(row[2], tuple):
        return False
    layer, bias, weights = row
    if isinstance(layer, bool) or not isinstance(layer, int):
        return False
    return all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= LARGEST
        for number in (bias, *weights)
    )
