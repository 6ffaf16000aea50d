"""The seam for signals: how much each image token matters to an answer.

A signal is a subclass of :class:`Signal`, in a notebook cell, in another package or in a file of
this folder; names and instances are what ``vlm.explain(..., signals=[...])`` takes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from vlmflow.errors import InputError
from vlmflow.extensions import Extension
from vlmflow.flow.signals.other_inputs import Noise as Noise
from vlmflow.flow.signals.other_inputs import Path as Path
from vlmflow.flow.signals.readings import (
    FEATURES,
    HEAD_GRADIENTS,
    HEADS,
    LOGITS,
    MAPS,
    NEED_GRADIENTS,
    READS,
    REMOVAL,
    ROWS,
    TOGETHER,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlmflow.flow.signals.answer_view import AnswerView
    from vlmflow.flow.signals.layer_view import LayerView

LAYER_INPUT, LAYER_OUTPUT = "layer_input", "layer_output"
"""Hook points beside names of a layer's parts, see :mod:`vlmflow.flow.features`."""

COLOUR = re.compile(r"#[0-9a-fA-F]{6}")

POST_ATTENTION_NORM = "post_attention_norm"
"""The paper's hook point (App. A.1): the output of each layer's norm between attention and MLP."""


@dataclass(frozen=True)
class Passes:
    """What a map takes: forward and backward passes over one prompt with its answer."""

    forward: int
    backward: int


@dataclass(frozen=True)
class Part:
    """A map that another signal is made of.

    Of one ``layer``, by its number or as a share of the depth: of L layers ``Fraction(1, 3)`` is
    number ``L // 3``, or the nearest one that has a map, of two the earlier one. None where the
    signal has one map for all layers.
    """

    signal: Signal
    layer: int | Fraction | None = None

    def place(self, has_map: Sequence[bool]) -> int:
        """Return the number of its layer, where ``has_map`` says which layers have a map: (L,)."""
        if self.layer is None or isinstance(self.layer, int):
            return self.layer or 0
        wanted = int(self.layer * len(has_map))
        there = [layer for layer, has in enumerate(has_map) if has] or [wanted]
        return min(there, key=lambda layer: (abs(layer - wanted), layer))


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
    at a hook point of each layer, and their gradient. ``"heads"``: attention of every head and
    position, for :meth:`of_heads`; with ``"head_gradients"`` its gradient, too. ``"logits"`` and
    ``"removal"``: passes of its own, for :meth:`of_answer`. ``"maps"``: the maps of other signals
    (which, says :attr:`made_of`), for :meth:`of_maps`. ``("attention", "saliency")`` go together,
    and so do the last two pairs; others are seen at different times.
    """

    rows: ClassVar[str] = "answer"
    """For ``"attention"`` alone: whose. ``"answer"``: the positions that predict the target's
    tokens. ``"text"``: all text after the first image token, up to those."""

    summed: ClassVar[bool] = False
    """Whether there is one map, the sum over layers, instead of one per layer."""

    whole: ClassVar[bool] = False
    """Whether that one map is about the model as a whole, not about layers: what is "summed" is its
    first layer's input alone. So are the maps of :meth:`of_answer`."""

    residual: ClassVar[tuple[float, float]] = (1.0, 1.0)
    """For ``"heads"``: how much of a token's own state a layer keeps, and how much of the attended
    ones it adds."""

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

    def of_heads(self, attention: Tensor, gradient: Tensor | None) -> Tensor:
        """For ``"heads"``: weigh every pair of positions in every head of a layer.

        The mean over the heads, ``M``, is what the layer mixes. With ``R = 1`` before the first
        layer, every layer makes it ``R <- kept R + added M R``, where ``kept`` and ``added`` are
        :attr:`residual`. The map after a layer is the row of ``R`` at the position that predicts
        the token (for the whole answer the mean of these rows), at the image tokens.

        Parameters
        ----------
        attention : (H, R, N)
            Of all heads, a few rows at a time: look at each row by itself.
        gradient : (H, R, N), optional
            The target's, with ``"head_gradients"``.

        Returns
        -------
        (H, R, N)
            0 where attention is 0, as where a mask hides a position.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define of_heads")

    def of_answer(self, seen: AnswerView) -> Tensor:
        """For ``"logits"`` and ``"removal"``: give every image token its value for every target.

        Parameters
        ----------
        seen : AnswerView
            The prompt, its answer, and what can be run about them.

        Returns
        -------
        (1 + T, P)
            The whole answer, then each of its T tokens. Values that are not positive count as
            nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define of_answer")

    def of_maps(self, maps: Tensor) -> Tensor:
        """For ``"maps"``: make one map of those of other signals, for one target.

        Parameters
        ----------
        maps : (K, P)
            Those of :attr:`made_of`, in this order; 0 everywhere where one is not defined.

        Returns
        -------
        (P,)
            As :meth:`of_layer`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define of_maps")

    @property
    def made_of(self) -> tuple[Part, ...]:
        """For ``"maps"``: the maps that it is made of; they are measured in the same passes."""
        return ()

    def shown_as(self) -> str:
        """Return what pages and figures call it."""
        return self.label or self.known_as()

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

    @property
    def path(self) -> Path | None:
        """Image embeddings that the map is the integral over; None: the picture's own alone."""
        return None

    def passes(self, tokens: int = 0) -> Passes:
        """Count the passes that the map takes where it is measured alone.

        What defines :meth:`of_answer` has to define it, too.

        Parameters
        ----------
        tokens : int
            Answer tokens that are explained beside the whole answer; 0: the whole answer alone.
        """
        if self.made_of:
            own = [part.signal for part in self.made_of]
            together = [one.passes(tokens) for one in own if one.in_one_pass]
            alone = [one.passes(tokens) for one in dict.fromkeys(own) if not one.in_one_pass]
            return Passes(
                max((one.forward for one in together), default=0) + sum(a.forward for a in alone),
                max((one.backward for one in together), default=0) + sum(a.backward for a in alone),
            )
        copies = 1
        if self.noise is not None:
            copies = self.noise.copies
        if self.path is not None:
            copies = self.path.steps
        backward = 0
        if self.needs_gradients:
            backward = (tokens + self.needs_whole_pass) if tokens else 1
        return Passes(copies, copies * backward)

    def check_model(self, layers: nn.ModuleList) -> None:
        """Raise InputError for parameters that do not fit a model's decoder layers."""

    @property
    def all_reads(self) -> tuple[str, ...]:
        """:attr:`reads` as a tuple."""
        return (self.reads,) if isinstance(self.reads, str) else tuple(self.reads)

    @property
    def needs_gradients(self) -> bool:
        """Whether it takes backward passes."""
        if any(part.signal.needs_gradients for part in self.made_of):
            return True
        return any(reading in NEED_GRADIENTS for reading in self.all_reads)

    @property
    def needs_whole_pass(self) -> bool:
        """Whether the whole answer takes a backward pass of its own beside those of its tokens.

        All other readings are linear in the target, so that the tokens' add up.
        """
        return HEAD_GRADIENTS in self.all_reads

    @property
    def folds(self) -> bool:
        """Whether it multiplies what the layers mix."""
        return HEADS in self.all_reads

    @property
    def has_own_passes(self) -> bool:
        """Whether it runs passes of its own, one answer at a time."""
        return LOGITS in self.all_reads or REMOVAL in self.all_reads

    @property
    def in_one_pass(self) -> bool:
        """Whether the picture as it is, run once, shows all that it reads."""
        if self.made_of or self.has_own_passes:
            return False
        return self.noise is None and self.path is None

    @property
    def searched_with(self) -> str:
        """How the map was searched for; empty where it was not.

        A map that was searched with a replacement is judged by another one: figures with its own
        are in-sample.
        """
        if REMOVAL in self.all_reads:
            return "removal of image tokens"
        return next(filter(None, (part.signal.searched_with for part in self.made_of)), "")

    def fingerprint(self) -> str:
        """Hash it, and what it is made of; see :meth:`Extension.fingerprint`."""
        own = super().fingerprint()
        if not self.made_of:
            return own
        parts = [own, *(part.signal.fingerprint() for part in self.made_of)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def check_declared(self) -> None:
        """Raise InputError for a class that declares nothing, or what does not exist."""
        name = self.known_as()
        reads = self.all_reads
        if not reads:
            raise InputError(
                f"signal {name!r} does not declare what it reads; write for example "
                "reads = 'attention'"
            )
        for reading in reads:
            if reading not in READS:
                raise InputError(
                    f"signal {name!r} declares reads={self.reads!r}, but {reading!r} is none of "
                    f"{', '.join(READS)}"
                )
        if not any(set(reads) <= set(group) for group in TOGETHER):
            raise InputError(
                f"signal {name!r} declares reads={self.reads!r}, but these are seen at different "
                f"times; read {', or '.join(' and '.join(group) for group in TOGETHER)}"
            )
        if HEAD_GRADIENTS in reads and HEADS not in reads:
            raise InputError(
                f"signal {name!r} declares reads={self.reads!r}; head_gradients come with heads: "
                "read both"
            )
        self._check_defined(name)
        if self.rows not in ROWS:
            raise InputError(
                f"signal {name!r} declares rows={self.rows!r}, which is none of {', '.join(ROWS)}"
            )
        if self.colour and not COLOUR.fullmatch(self.colour):
            raise InputError(
                f"signal {name!r} has colour={self.colour!r}, which is not a colour; write it as "
                "six digits: '#0072b2'"
            )

    def _check_defined(self, name: str) -> None:
        """Refuse a class without the method that its readings are for, or that cannot be run."""
        method = "of_heads" if self.folds else "of_answer" if self.has_own_passes else "of_layer"
        method = "of_maps" if MAPS in self.all_reads else method
        if getattr(type(self), method) is getattr(Signal, method):
            takes = {"of_heads": "self, attention, gradient", "of_maps": "self, maps"}
            raise InputError(
                f"signal {name!r} says nothing: define {method}({takes.get(method, 'self, seen')})"
            )
        if (MAPS in self.all_reads) != bool(self.made_of):
            raise InputError(
                f"signal {name!r} reads maps if, and only if, it says which: declare reads = "
                "'maps' and the property made_of"
            )
        if self.has_own_passes and type(self).passes is Signal.passes:
            raise InputError(
                f"signal {name!r} runs passes of its own: define passes(self, tokens=0), which "
                "counts them as Passes(forward, backward)"
            )
        if self.noise is not None and (self.path is not None or self.has_own_passes):
            other = "a path" if self.path is not None else "passes of its own"
            raise InputError(f"signal {name!r} declares noise and {other}; leave one of them out")
        if self.path is not None and FEATURES not in self.all_reads:
            raise InputError(
                f"signal {name!r} declares a path, which is seen with features alone; write "
                "reads = 'features'"
            )
        if self.summed and self.folds:
            raise InputError(
                f"signal {name!r} folds its layers, so their sum is not defined; leave out summed"
            )
