"""The seam for signals: how much each image token matters to an answer.

A signal is a subclass of :class:`Signal`, in a notebook cell, in another package or in a file of
this folder; names and instances are what ``vlm.explain(..., signals=[...])`` takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlmflow.errors import InputError
from vlmflow.extensions import Extension
from vlmflow.flow.signals.readings import FEATURES, READS, ROWS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlmflow.flow.signals.layer_view import LayerView

COLOUR = re.compile(r"#[0-9a-fA-F]{6}")

POST_ATTENTION_NORM = "post_attention_norm"
"""The paper's hook point (App. A.1): the output of each layer's norm between attention and MLP."""


@dataclass(frozen=True)
class Noise:
    """Noisy pictures that a map is averaged over.

    ``copies`` of them, with noise of this standard deviation in normalised pixel values, drawn
    from ``seed``.
    """

    copies: int
    deviation: float
    seed: int


@dataclass(frozen=True)
class Signal(Extension):
    """Says how much each image token matters, layer by layer.

    Subclass it as a frozen dataclass whose fields are its parameters, and define
    :meth:`of_layer`:

    >>> @dataclass(frozen=True)
    ... class MaxAttention(vlmflow.Signal):
    ...     '''The strongest look of any answer token at each image token.'''
    ...     reads = "attention"
    ...     label, colour, source = "max attention", "#0072b2", "this notebook"
    ...
    ...     def of_layer(self, seen):
    ...         return seen.attention.amax(0)

    A subclass can be used by its name from then on.
    """

    label: ClassVar[str] = ""
    """What pages and figures call it; empty: its name."""

    colour: ClassVar[str] = ""
    """Of its curves, ``"#0072b2"``; empty: one of the palette's."""

    reads: ClassVar[str | tuple[str, ...]] = ()
    """What it is made of.

    ``"attention"``: rows of attention, mean over the heads (whose, says :attr:`rows`).
    ``"saliency"``: rows of attention times its gradient, of all text. ``"features"``: hidden states
    at a hook point of each layer, and their gradient. ``("attention", "saliency")`` go together;
    features are seen at another time and cannot be combined.
    """

    rows: ClassVar[str] = "answer"
    """For ``"attention"`` alone: whose. ``"answer"``: the positions that predict the target's
    tokens. ``"text"``: all text after the first image token, up to those."""

    summed: ClassVar[bool] = False
    """Whether there is one map, the sum over layers, instead of one per layer."""

    def of_layer(self, seen: LayerView) -> Tensor:
        """Give every image token its value in one layer, for one target.

        Parameters
        ----------
        seen : LayerView
            What the layer shows.

        Returns
        -------
        (P,)
            Magnitudes, not normalised. Values that are not positive count as nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define of_layer")

    def pool(self, gradient: Tensor) -> Tensor:
        """For ``"features"``: keep less of the gradient than all of it, to save memory.

        Takes the gradient at the image tokens, (P, C), and returns what :meth:`of_layer` will find
        as ``seen.gradient``. Must be linear: the gradient of the whole answer is the sum of what
        this returns for its tokens.
        """
        return gradient

    def summed_layers(self, layers: int) -> range:
        """For a sum over layers: which of a model's ``layers`` are summed, one after the other."""
        return range(layers)

    @property
    def hook_point(self) -> str:
        """For ``"features"``: where in each layer, see :mod:`vlmflow.flow.features`."""
        return POST_ATTENTION_NORM

    @property
    def noise(self) -> Noise | None:
        """Noisy pictures that the map is the mean over; None: the picture as it is."""
        return None

    def check_model(self, layers: nn.ModuleList) -> None:
        """Raise InputError for parameters that do not fit a model's decoder layers."""

    @property
    def all_reads(self) -> tuple[str, ...]:
        """:attr:`reads` as a tuple."""
        return (self.reads,) if isinstance(self.reads, str) else tuple(self.reads)

    def check_declared(self) -> None:
        """Raise InputError for a class that declares nothing, or what does not exist."""
        name = self.known_as()
        if type(self).of_layer is Signal.of_layer:
            raise InputError(f"signal {name!r} says nothing: define of_layer(self, seen)")
        if not self.all_reads:
            raise InputError(
                f"signal {name!r} does not declare what it reads; write for example "
                "reads = 'attention'"
            )
        for reading in self.all_reads:
            if reading not in READS:
                raise InputError(
                    f"signal {name!r} declares reads={self.reads!r}, but {reading!r} is none of "
                    f"{', '.join(READS)}"
                )
        if FEATURES in self.all_reads and len(self.all_reads) > 1:
            raise InputError(
                f"signal {name!r} declares reads={self.reads!r}, but features are seen at another "
                "time than attention; read one of them"
            )
        if self.rows not in ROWS:
            raise InputError(
                f"signal {name!r} declares rows={self.rows!r}, which is none of {', '.join(ROWS)}"
            )
        if self.colour and not COLOUR.fullmatch(self.colour):
            raise InputError(
                f"signal {name!r} has colour={self.colour!r}, which is not a colour; write it as "
                "six digits: '#0072b2'"
            )
