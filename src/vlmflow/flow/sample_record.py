"""What every layer shows during the passes, reduced to a few numbers per layer and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.attention_rows import (
    AttentionCall,
    all_attention_rows,
    mean_attention,
    signed_saliency,
)
from vlmflow.flow.fold import BackwardFold, ForwardFold
from vlmflow.flow.segment_flow import attention_share, segment_saliency
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.readings import ATTENTION, FEATURES, SALIENCY
from vlmflow.flow.signals.signal import LAYER_INPUT, Signal
from vlmflow.lvlm.grids import IntArray
from vlmflow.lvlm.layout import SEGMENTS, Segment, TokenLayout

SHARE, SALIENCY_MEAN, SALIENCY_SUM = "share", "saliency mean", "saliency sum"
"""Names of the segments' flow; maps are recorded under their own names, which have no spaces."""

ANY_GRADIENT = "any gradient at "
"""With a hook point: whether there was any gradient at all."""


@dataclass(frozen=True)
class PathPoint:
    """A point ``x' + share (x - x')`` of a path, see :class:`vlmflow.flow.signals.signal.Path`."""

    baseline: str
    share: float


@dataclass(frozen=True, eq=False)
class _Places:
    """Where to look in one row of the batch, as tensors on one device."""

    image: Tensor  # (P,) positions of the image tokens
    text_rows: Tensor  # (R,) positions of the text after the first image token
    is_answer: Tensor  # (R,) bool: the row predicts an answer token
    attended: Tensor  # (R,) bool: attention is recorded of the row
    kept: Tensor  # (R,) bool: and is kept as it is, to every position
    destinations: Tensor  # (R, 2) bool: user rows, answer rows
    membership: Tensor  # (N, S) bool: the position belongs to the segment
    real: Tensor  # (N,) bool: the position is not padding


class SampleRecord:
    """What is measured of row ``index`` of the batch, whose tokens ``layout`` describes.

    Target 0 is the whole answer; with ``per_token`` its values come from sums over the answer's
    tokens, which are kept per layer until the last token's pass: signed saliency (rows x N), and
    for each signal on features what its ``pool`` leaves. ``signals`` has them by the names of their
    maps, ``layers_of`` the layers that each has maps of. ``point`` is where the image embeddings
    stand on a path. ``kept_rows`` are positions, sorted and all of them text rows, whose attention
    to every position is kept beside what is reduced. Between the passes of one token and the next
    so many ``held_bytes`` of attention may be held instead of being rebuilt.
    """

    def __init__(
        self,
        index: int,
        layout: TokenLayout,
        per_token: bool,
        signals: Mapping[str, Signal],
        layers_of: Mapping[str, range],
        point: PathPoint | None = None,
        kept_rows: IntArray | None = None,
        *,
        held_bytes: int = 0,
    ) -> None:
        self.index = index
        self.kept_rows = np.empty(0, np.int64) if kept_rows is None else kept_rows
        self.layers_of = layers_of
        self.point = point
        self._difference: Tensor | None = None  # (P, C): x - x' of a path
        self.layout = layout
        self.per_token = per_token
        self.signals = signals
        self.tokens, self._image_tokens = len(layout.answer_positions), len(layout.image_positions)
        self.targets = 1 + self.tokens * per_token
        self.layers_with_attention: set[int] = set()
        self._on_saliency = {n: s for n, s in signals.items() if SALIENCY in s.all_reads}
        self._on_features = {n: s for n, s in signals.items() if FEATURES in s.all_reads}
        self._on_attention = {n: s for n, s in signals.items() if s.all_reads == (ATTENTION,)}
        self._on_heads = {n: s for n, s in signals.items() if s.folds and not s.needs_gradients}
        self._on_head_gradients = {n: s for n, s in signals.items() if s.needs_whole_pass}
        # Beside the answer's rows, which the segments' shares are read off.
        self._all_text = any(s.rows == "text" for s in self._on_attention.values())
        self._with_saliency = any(ATTENTION in s.all_reads for s in self._on_saliency.values())
        self._folds_forward: dict[str, ForwardFold] = {}
        self._folds_backward: dict[str, BackwardFold] = {}
        self._values: dict[tuple[str, int, int], Tensor] = {}
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._places: dict[torch.device, _Places] = {}
        self._held_bytes = held_bytes if self.targets > 2 else 0
        self._held: dict[int, Tensor] = {}  # Of layers: A of the text rows, (heads, R, N)
        self._kept: dict[int, Tensor] = {}  # Of every layer: (K, N) half

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Record attention where no gradient will show it."""
        places = self._at(call.query.device)
        rows = places.text_rows[places.attended]
        self._record_attention(layer, places, mean_attention(call, self.index, rows))

    def on_attention_gradient(
        self, layer: int, target: int, call: AttentionCall, gradient: Tensor, *, first: bool
    ) -> None:
        """Record saliency of the text rows from dO, (batch, N, heads, head_dim).

        ``first``: :meth:`on_attention` has not been and will not be called for the layer.
        """
        places = self._at(call.query.device)
        attended = places.attended if first else None
        signed, attention = signed_saliency(
            call,
            gradient,
            self.index,
            places.text_rows,
            attended,
            held=self._held_rows(layer, call, places.text_rows),
        )
        if attention is not None:
            self._record_attention(layer, places, attention)
        to_image = None
        if self._with_saliency:
            to_image = mean_attention(call, self.index, places.text_rows)[:, places.image]
        for number, values in self._with_whole(SALIENCY, layer, target, signed):
            mean, total = segment_saliency(
                values.abs(), places.text_rows, places.destinations, places.membership
            )
            self._values[SALIENCY_MEAN, layer, number] = mean
            self._values[SALIENCY_SUM, layer, number] = total
            signed_to_image = values[:, places.image]
            for name, signal in self._on_saliency.items():
                view = LayerView(
                    name,
                    signal.all_reads,
                    layer,
                    places.is_answer,
                    _attention=to_image if ATTENTION in signal.all_reads else None,
                    _signed=signed_to_image,
                )
                self._record_map(view, number)

    def on_heads(self, layer: int, call: AttentionCall) -> None:
        """Fold one more layer into the maps made of all heads, in the order of the layers."""
        places = self._at(call.query.device)
        for name, signal in self._on_heads.items():
            if name not in self._folds_forward:
                real = places.real.nonzero()[:, 0]
                self._folds_forward[name] = ForwardFold(name, signal, places.image, real)
            columns = self._folds_forward[name].step(call, self.index)
            rows = columns[places.text_rows[places.is_answer]]
            for target in range(self.targets):
                self._values[name, layer, target] = rows[target - 1] if target else rows.mean(0)

    def on_head_gradients(
        self, layer: int, target: int, call: AttentionCall, gradient: Tensor
    ) -> None:
        """Fold one more layer into the maps made of all heads' gradients, the last layer first."""
        places = self._at(call.query.device)
        for name, signal in self._on_head_gradients.items():
            if name not in self._folds_backward:
                rows = places.text_rows[places.is_answer]
                rows = rows[target - 1 : target] if target else rows
                start = torch.zeros(len(self.layout), device=rows.device)
                start[rows] = 1 / len(rows)
                self._folds_backward[name] = BackwardFold(name, signal, start)
            self._folds_backward[name].step(layer, call, gradient, self.index)

    def on_pass_end(self, target: int) -> None:
        """Record what the backward pass of a target has folded."""
        for name, fold in self._folds_backward.items():
            missing = sorted(self.layers_with_attention - set(fold.layers))
            if missing:
                raise ModelError(
                    f"no gradient reaches the attention of layer {missing[0]}, so what it mixes "
                    f"is not known to {name!r}; choose a signal without gradients"
                )
            for layer, values in fold.maps(self._at(fold.start.device).image):
                self._values[name, layer, target] = values
        self._folds_backward.clear()

    def check_folds(self, without: Sequence[int]) -> None:
        """Refuse signals that fold all layers of a model of which some have no attention."""
        folding = [name for name, signal in self.signals.items() if signal.folds]
        if without and folding:
            raise InputError(
                f"signal {folding[0]!r} multiplies what all decoder layers mix, but layer(s) "
                f"{', '.join(map(str, without))} of this model have no attention; choose a signal "
                "that looks at one layer at a time"
            )

    def moved(self, hidden: Tensor) -> Tensor:
        """Move the image tokens of the first layer's input, (B, N, C), to their point of a path."""
        if self.point is None:
            return hidden
        image = self._at(hidden.device).image
        own = hidden[self.index].index_select(0, image)
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        baseline = own.mean(0) if self.point.baseline == "mean" else torch.zeros_like(own[0])
        self._difference = own - baseline
        hidden = hidden.clone()
        at_point = baseline + self.point.share * self._difference
        hidden[self.index, image] = at_point.to(hidden.dtype)
        return hidden

    def on_features(
        self, hook: str, layer: int, target: int, features: Tensor, gradient: Tensor
    ) -> None:
        """Record the maps made of features and gradients, (batch, N, C), at the image positions."""
        image = self._at(features.device).image
        at_image = features[self.index].index_select(0, image)
        gradients = gradient[self.index].index_select(0, image)
        any_gradient, flag_name = gradients.any().float(), ANY_GRADIENT + hook
        wide = torch.promote_types(at_image.dtype, torch.float32)
        at_image, gradients = at_image.to(wide), gradients.to(wide)
        for number, values in self._with_whole(flag_name, layer, target, any_gradient):
            self._values[flag_name, layer, number] = values
        no_rows = image.new_zeros(0, dtype=torch.bool)
        for name, signal in self._on_features.items():
            if signal.hook_point != hook or layer not in self.layers_of[name]:
                continue
            pooled = signal.pool(gradients)
            for number, values in self._with_whole(name, layer, target, pooled):
                view = LayerView(
                    name,
                    signal.all_reads,
                    layer,
                    no_rows,
                    _features=at_image,
                    _gradient=values,
                    _difference=self._difference if hook == LAYER_INPUT and not layer else None,
                )
                self._record_map(view, number)

    def stacked(self, name: str, layers: range, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Stack what these layers recorded under a name: ``(layers, *shape)``, 0 without.

        Raises ModelError if nothing at all was recorded: zeros would look like a finding.
        """
        result = np.zeros((len(layers), *shape), dtype=np.float32)
        recorded = False
        for row, layer in enumerate(layers):
            values = [self._values.get((name, layer, target)) for target in range(self.targets)]
            present = [value for value in values if value is not None]
            if present:
                result[row] = torch.stack(present).float().cpu().numpy()
                recorded = True
        if not recorded:
            raise ModelError(
                f"nothing was measured for {name!r}: none of layers {layers.start} to "
                f"{layers.stop - 1} of this model shows what it reads"
            )
        return result

    def kept_attention(self, layers: int) -> npt.NDArray[np.float16]:
        """Stack the attention of the kept rows, averaged over heads: (L, K, N), 0 without any."""
        result = np.zeros((layers, len(self.kept_rows), len(self.layout)), dtype=np.float16)
        for layer, rows in self._kept.items():
            result[layer] = rows.cpu().numpy()
        return result

    def _held_rows(self, layer: int, call: AttentionCall, rows: Tensor) -> Tensor | None:
        """Return A of the text rows, (heads, R, N), kept between passes; None: does not fit."""
        if layer not in self._held:
            width = max(4, call.query.element_size())
            size = width * call.query.shape[1] * len(rows) * call.key.shape[2]
            if (len(self._held) + 1) * size > self._held_bytes:
                return None
            self._held[layer] = all_attention_rows(call, self.index, rows)
        return self._held[layer]

    def _record_attention(self, layer: int, places: _Places, rows: Tensor) -> None:
        """Record (attended rows, N) of attention: shares of the segments, and maps."""
        self.layers_with_attention.add(layer)
        if len(self.kept_rows):
            self._kept[layer] = rows[places.kept[places.attended]].half()
        is_answer = places.is_answer[places.attended]
        share = attention_share(rows[is_answer], places.membership)
        self._values[SHARE, layer, 0] = share.mean(0)
        for target in range(1, self.targets):
            self._values[SHARE, layer, target] = share[target - 1]
        to_image = rows[:, places.image]
        order = torch.arange(len(rows), device=rows.device)
        answer = order[is_answer]
        for name, signal in self._on_attention.items():
            for target in range(self.targets):
                if signal.rows == "text":
                    last = answer[target - 1] if target else answer[-1]
                    chosen = order[order <= last]
                else:
                    chosen = answer if target == 0 else answer[target - 1 : target]
                view = LayerView(
                    name, signal.all_reads, layer, is_answer[chosen], _attention=to_image[chosen]
                )
                self._record_map(view, target)

    def _record_map(self, view: LayerView, target: int) -> None:
        """Record what the signal makes of the view."""
        values = self.signals[view.name].of_layer(view)
        expected = self._image_tokens
        if not isinstance(values, Tensor) or values.shape != (expected,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"signal {view.name!r} gave {shape} where a value for each of the {expected} image "
                "tokens is needed; return a tensor of shape (P,) from of_layer"
            )
        self._values[view.name, view.layer, target] = values

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
            kept = np.isin(rows, self.kept_rows)
            segments = np.arange(len(SEGMENTS))
            self._places[device] = _Places(
                image=torch.from_numpy(layout.image_positions).to(device),
                text_rows=torch.from_numpy(rows).to(device),
                is_answer=torch.from_numpy(answer).to(device),
                attended=torch.from_numpy(answer | kept | self._all_text).to(device),
                kept=torch.from_numpy(kept).to(device),
                destinations=torch.from_numpy(np.stack([~answer, answer], axis=1)).to(device),
                membership=torch.from_numpy(layout.segments[:, None] == segments).to(device),
                real=torch.from_numpy(layout.segments != Segment.PAD).to(device),
            )
        return self._places[device]
