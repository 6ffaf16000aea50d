"""Combined: a normalised sum of maps that other signals give in the same passes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.flow.signals.signal import Part, Signal
from vlmflow.parameters import split_outside_brackets

MEAN, RANK = SCALES = ("mean", "rank")

_LAYERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_DEPTH = re.compile(r"(\d{1,4})/(\d{1,4})")


@dataclass(frozen=True)
class Combined(Signal):
    """``mean_k f(m_k)``: the mean of K maps of other signals, each brought to one scale by f.

    With ``scale="mean"`` a map's positive part is divided by its mean over the image tokens; with
    ``"rank"`` its values are replaced by their ranks (ties share the mean of theirs), counted from
    the lowest, over the number of image tokens. A map without a positive value adds nothing. A
    definition of vlmflow's own; which combination is worth anything is a question for
    ``vlmflow faithfulness --combine``.

    Parameters
    ----------
    parts : str
        Signals with ``+`` between them, each with its layer after a colon, or several layers:
        ``"saliency:4+sensitivity"``, ``"attention:0-3"`` (the sum of layers 0 to 3),
        ``"saliency:1/3"`` (a third of the way through the layers, see :class:`Part`).
    scale : str
        ``"mean"`` or ``"rank"``.
    """

    name = "combined"
    summary = "mean of other signals' maps on one scale (parts, scale)"
    source = "sum of other maps, by vlmflow"
    reads = "maps"
    summed = True
    whole = True

    parts: str = "flow_map+sensitivity"
    scale: str = MEAN

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(f"scale={self.scale!r} is none of {', '.join(map(repr, SCALES))}")
        if not isinstance(self.parts, str) or not self.parts.strip():
            raise InputError(f"parts={self.parts!r} names no signal; for example saliency:4+tam")
        for part in self.made_of:
            if part.signal.made_of:
                raise InputError(
                    f"parts={self.parts!r}: {part.signal.known_as()} is made of other maps itself; "
                    "name these"
                )
            part.signal.check_declared()

    def shown_as(self) -> str:
        """Return the parts, and the scale where it is ranks."""
        parts = map(str.strip, split_outside_brackets(self.parts, "+"))
        return " + ".join(parts) + (" (ranks)" if self.scale == RANK else "")

    @property
    def made_of(self) -> tuple[Part, ...]:
        """Read the parts; see :attr:`Signal.made_of`."""
        parts: list[Part] = []
        for text in split_outside_brackets(self.parts, "+"):
            name, _, layers = text.strip().rpartition(":")
            depth = _DEPTH.fullmatch(layers.strip()) if name else None
            if depth is not None:
                share, whole = int(depth[1]), int(depth[2])
                if share >= whole:
                    raise InputError(
                        f"parts={self.parts!r}: {share}/{whole} is no share of the depth below 1; "
                        "for example 1/3"
                    )
                parts.append(Part(SIGNALS.read(name.strip()), Fraction(share, whole)))
                continue
            matched = _LAYERS.fullmatch(layers.strip()) if name else None
            if matched is None:  # no layer; a colon may belong to module:Class
                parts.append(Part(SIGNALS.read(text.strip())))
                continue
            first, last = int(matched[1]), int(matched[2] or matched[1])
            if last < first:
                raise InputError(f"parts={self.parts!r}: layers {first}-{last} are none; swap them")
            signal = SIGNALS.read(name.strip())
            parts += [Part(signal, layer) for layer in range(first, last + 1)]
        return tuple(parts)

    def check_model(self, layers: nn.ModuleList) -> None:
        """Refuse parts, or layers of them, that the model does not have."""
        for part in self.made_of:
            part.signal.check_model(layers)
            name, layer = part.signal.known_as(), part.layer
            if part.signal.summed or part.signal.has_own_passes:
                if layer is not None:
                    raise InputError(
                        f"parts={self.parts!r}: {name} has one map for all layers; leave the layer "
                        "out"
                    )
            elif layer is None:
                raise InputError(
                    f"parts={self.parts!r}: {name} has one map per layer; name one, {name}:0"
                )
            elif isinstance(layer, int) and layer >= len(layers):
                raise InputError(
                    f"parts={self.parts!r}: layer {layer}, but the model has {len(layers)} decoder "
                    f"layers (0..{len(layers) - 1})"
                )

    def of_maps(self, maps: Tensor) -> Tensor:
        """Add them up on one scale; see :meth:`Signal.of_maps`."""
        positive = maps.clamp_min(0)
        if self.scale == RANK:
            return torch.stack([_ranks(own) for own in positive]).mean(0)
        means = positive.mean(1, keepdim=True)
        return (positive / means.where(means > 0, 1)).mean(0)


def _ranks(values: Tensor) -> Tensor:
    """Return ranks over the number of values, (P,): ties share theirs, the lowest is 0."""
    ordered = values.sort().values
    first = torch.searchsorted(ordered, values)
    last = torch.searchsorted(ordered, values, right=True)
    ranks = (first + last).to(values.dtype)
    return (ranks - ranks.min()) / (2 * len(values))
