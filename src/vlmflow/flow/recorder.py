"""What every layer shows during the passes, reduced to a few numbers per layer and target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.flow.attention_rows import (
    AttentionCall,
    mean_attention,
    saliency_and_attention,
    signed_saliency,
)
from vlmflow.flow.signals import Signal
from vlmflow.flow.signals.attention import attention_map, attention_share
from vlmflow.flow.signals.saliency import saliency, saliency_map, segment_saliency
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout

SHARE, SALIENCY_MEAN, SALIENCY_SUM = "share", "saliency mean", "saliency sum"
ANY_GRADIENT = "any gradient"
"""Names of what is recorded beside the maps, which are recorded under their signal's name."""


@dataclass(frozen=True, eq=False)
class _Places:
    """Where to look in one row of the batch, as tensors on one device."""

    image: Tensor
    text_rows: Tensor
    answer_rows: Tensor
    destinations: Tensor
    membership: Tensor


class SampleRecord:
    """What is known about one row of the batch.

    Target 0 is the whole answer; with ``per_token`` its values come from sums over the answer's
    tokens, which are kept per layer until the last token's pass: signed saliency (rows x N), and
    for each signal on features what its ``pool`` leaves.
    """

    def __init__(
        self, index: int, layout: TokenLayout, per_token: bool, features: Sequence[Signal]
    ) -> None:
        self.index = index
        self.layout = layout
        self.per_token = per_token
        self.features = tuple(features)
        self.tokens = len(layout.answer_positions)
        self.targets = 1 + self.tokens * per_token
        self.layers_with_attention: set[int] = set()
        self._values: dict[tuple[str, int, int], Tensor] = {}
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._places: dict[torch.device, _Places] = {}

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Record attention flow of the answer's rows."""
        places = self._at(call.query.device)
        self._record_attention(layer, places, mean_attention(call, self.index, places.answer_rows))

    def _record_attention(self, layer: int, places: _Places, rows: Tensor) -> None:
        self.layers_with_attention.add(layer)
        share = attention_share(rows, places.membership)
        image = attention_map(rows, places.image)
        for name, values in ((SHARE, share), ("attention", image)):
            self._values[name, layer, 0] = values.mean(0)
            for target in range(1, self.targets):
                self._values[name, layer, target] = values[target - 1]

    def on_attention_gradient(
        self, layer: int, target: int, call: AttentionCall, gradient: Tensor, *, first: bool
    ) -> None:
        """Record saliency flow of the text rows, and what :meth:`on_attention` has not seen."""
        places = self._at(call.query.device)
        if first:
            signed, rows = saliency_and_attention(
                call, gradient, self.index, places.text_rows, places.destinations[:, 1]
            )
            self._record_attention(layer, places, rows)
        else:
            signed = signed_saliency(call, gradient, self.index, places.text_rows)
        for number, values in self._with_whole("saliency", layer, target, signed):
            flow = saliency(values)
            mean, total = segment_saliency(
                flow, places.text_rows, places.destinations, places.membership
            )
            self._values[SALIENCY_MEAN, layer, number] = mean
            self._values[SALIENCY_SUM, layer, number] = total
            self._values["saliency", layer, number] = saliency_map(flow, places.image)

    def on_features(self, layer: int, target: int, features: Tensor, gradient: Tensor) -> None:
        """Record the maps made of features and gradients at the image positions."""
        image = self._at(features.device).image
        here = features[self.index].index_select(0, image)
        gradients = gradient[self.index].index_select(0, image)
        any_gradient = gradients.any().float()
        wide = torch.promote_types(here.dtype, torch.float32)
        here, gradients = here.to(wide), gradients.to(wide)
        for number, values in self._with_whole(ANY_GRADIENT, layer, target, any_gradient):
            self._values[ANY_GRADIENT, layer, number] = values
        for signal in self.features:
            if signal.pool is None or signal.read is None:
                raise ValueError(f"signal {signal.name!r} reads features but does not say how")
            pooled = signal.pool(gradients)
            for number, values in self._with_whole(signal.name, layer, target, pooled):
                self._values[signal.name, layer, number] = signal.read(here, values)

    def stacked(self, name: str, layers: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Everything recorded under a name: ``(layers, *shape)``, 0 where there is nothing."""
        result = np.zeros((layers, *shape), dtype=np.float32)
        for layer in range(layers):
            found = [self._values.get((name, layer, target)) for target in range(self.targets)]
            present = [values for values in found if values is not None]
            if present:
                result[layer] = torch.stack(present).float().cpu().numpy()
        return result

    def _with_whole(
        self, name: str, layer: int, target: int, values: Tensor
    ) -> list[tuple[int, Tensor]]:
        """Give the target's values, and after the last token the whole answer's: their sum."""
        if not self.per_token:
            return [(0, values)]
        before = self._sums.pop((name, layer), None)
        total = values if before is None else before.add_(values)
        if target == self.tokens:
            return [(target, values), (0, total)]
        # A copy: later tokens are added to it in place.
        self._sums[name, layer] = total.clone() if before is None else total
        return [(target, values)]

    def _at(self, device: torch.device) -> _Places:
        if device not in self._places:
            layout = self.layout
            rows = layout.text_rows
            answer = np.isin(rows, layout.answer_rows)
            segments = np.arange(len(SEGMENTS))
            self._places[device] = _Places(
                image=torch.from_numpy(layout.image_positions).to(device),
                text_rows=torch.from_numpy(rows).to(device),
                answer_rows=torch.from_numpy(layout.answer_rows).to(device),
                destinations=torch.from_numpy(np.stack([~answer, answer], axis=1)).to(device),
                membership=torch.from_numpy(layout.segments[:, None] == segments).to(device),
            )
        return self._places[device]


class Recorder:
    """Hands what the layers show to every row of the batch that the running target concerns."""

    def __init__(self, records: Sequence[SampleRecord]) -> None:
        self.records = records
        self.target = 0

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Hand on what no backward pass is to show."""
        for record in self.records:
            record.on_attention(layer, call)

    def on_attention_gradient(
        self, layer: int, call: AttentionCall, gradient: Tensor, *, first: bool
    ) -> None:
        """Hand on a backward pass through an attention layer."""
        for record in self._concerned():
            record.on_attention_gradient(layer, self.target, call, gradient, first=first)

    def on_features(self, layer: int, features: Tensor, gradient: Tensor) -> None:
        """Hand on a backward pass through a hook point."""
        for record in self._concerned():
            record.on_features(layer, self.target, features, gradient)

    def _concerned(self) -> list[SampleRecord]:
        return [record for record in self.records if self.target <= record.tokens]
