"""From what a pass shows to numbers: every signal per layer and target, reduced at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.axes import DESTINATIONS, FLAGS
from vlmflow.flow.capture import capture
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.recorder import (
    ANY_GRADIENT,
    SALIENCY_MEAN,
    SALIENCY_SUM,
    SHARE,
    Recorder,
    SampleRecord,
)
from vlmflow.flow.signals.readings import FEATURES
from vlmflow.flow.signals.signal import Signal
from vlmflow.flow.targets import target_values
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout

Float32Array = npt.NDArray[np.float32]

OK, UNDEFINED, EMPTY, NO_ATTENTION = range(len(FLAGS))


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one row of the batch draws on.

    ``L`` layers, ``G`` targets (the whole answer, then its tokens if each was explained), ``P``
    image tokens, ``S`` segments.

    Parameters
    ----------
    attention_share : (L, G, S) float32
        Attention flow; all 0 in layers without attention.
    saliency_mean, saliency_sum : (L, G, 2, S) float32
        Saliency flow into user and answer rows.
    maps : dict of str to (L, G, P) float32
        Per signal; (1, G, P) where it sums over layers.
    flags : dict of str to (L, G) int8
        Index into ``FLAGS`` per map.
    target_values : (T,) float32
        Value of the target for each answer token.
    """

    attention_share: Float32Array
    saliency_mean: Float32Array
    saliency_sum: Float32Array
    maps: dict[str, Float32Array]
    flags: dict[str, npt.NDArray[np.int8]]
    target_values: Float32Array


def count_passes(layouts: Sequence[TokenLayout], per_token: bool) -> int:
    """Count the passes of :func:`measure`: one forward, and one backward per target."""
    longest = max(len(layout.answer_positions) for layout in layouts)
    return 1 + (longest if per_token else 1)


def measure(
    model: nn.Module,
    layers: nn.ModuleList,
    inputs: Mapping[str, Any],
    layouts: Sequence[TokenLayout],
    options: ExplainOptions,
    *,
    signals: Mapping[str, Signal] | None = None,
    segments: bool = True,
    on_pass: Callable[[], None] | None = None,
) -> list[Measurement]:
    """Measure a batch in one forward pass and one backward pass per target.

    With ``per_token`` the longest answer of T tokens takes T backward passes, and the whole answer
    is the sum of what they give: all signals but the last absolute value or ReLU are linear in the
    target. Without it, one backward pass explains the whole answer alone.

    Parameters
    ----------
    model, layers : nn.Module, nn.ModuleList
        A transformers model and its decoder layers; left exactly as found.
    inputs : mapping
        What its forward takes; ``input_ids`` (B, N) expanded, the answers at the end.
    layouts : sequence of B TokenLayout
        One per row of the batch, as long as the padded row.
    options : ExplainOptions
        What is wanted.
    signals : mapping of str to Signal, optional
        Maps that are wanted, by name, instead of those of the options; may be empty.
    segments : bool
        False leaves out the flow between segments (arrays of 0) where only maps are wanted.
    on_pass : callable, optional
        Called after each pass.

    Returns
    -------
    list of B Measurement

    Raises
    ------
    ModelError
        If logits or gradients are not finite, or the model cannot be followed.
    """
    chosen = options.named if signals is None else signals
    records = [
        SampleRecord(index, layout, options.per_token, chosen)
        for index, layout in enumerate(layouts)
    ]
    recorder = Recorder(records)
    tell = on_pass or (lambda: None)
    rows = np.unique(np.concatenate([layout.answer_rows for layout in layouts]))
    input_ids: Tensor = inputs["input_ids"]
    with capture(
        model,
        layers,
        recorder,
        attention=segments or any(FEATURES not in s.all_reads for s in chosen.values()),
        hooks={s.hook_point for s in chosen.values() if FEATURES in s.all_reads},
        low_memory=options.low_memory,
    ) as running:
        logits = running.forward(inputs, torch.from_numpy(rows).to(input_ids.device))
        tell()
        values = []
        for index, layout in enumerate(layouts):
            at = torch.from_numpy(np.searchsorted(rows, layout.answer_rows)).to(logits.device)
            ids = input_ids[index, torch.from_numpy(layout.answer_positions).to(input_ids.device)]
            values.append(target_values(logits[index, at], ids.to(logits.device), options.target))
            _check_finite(values[-1].detach(), "the target", index)
        del logits
        for number, scalar, last in _scalars(values, options.per_token):
            recorder.target = number
            running.backward(scalar, last=last)
            tell()
    return [
        _finish(record, len(layers), value.detach().float().cpu().numpy(), segments=segments)
        for record, value in zip(records, values, strict=True)
    ]


def _scalars(values: list[Tensor], per_token: bool) -> list[tuple[int, Tensor, bool]]:
    """List the targets: number (0: whole answer), scalar to go back from, whether it is last.

    Rows of a batch do not see each other, so one scalar serves them all.
    """
    if not per_token:
        return [(0, torch.stack([value.sum() for value in values]).sum(), True)]
    longest = max(len(value) for value in values)
    return [
        (
            token + 1,
            torch.stack([value[token] for value in values if len(value) > token]).sum(),
            token + 1 == longest,
        )
        for token in range(longest)
    ]


def _finish(
    record: SampleRecord, layers: int, values: Float32Array, *, segments: bool
) -> Measurement:
    """Stack what was recorded, and flag what it is worth."""
    targets, count = record.targets, len(SEGMENTS)
    shapes = {
        SHARE: (targets, count),
        SALIENCY_MEAN: (targets, len(DESTINATIONS), count),
        SALIENCY_SUM: (targets, len(DESTINATIONS), count),
    }
    flow = {
        name: record.stacked(name, range(layers), shape)
        if segments
        else np.zeros((layers, *shape), dtype=np.float32)
        for name, shape in shapes.items()
    }
    maps, flags = {}, {}
    for name, signal in record.signals.items():
        maps[name], flags[name] = _map(record, name, signal, layers)
    for name, array in {**flow, **maps}.items():
        what = f"the {name} signal"
        _check_finite(torch.from_numpy(array), what, record.index, own=name in maps)
    return Measurement(
        attention_share=flow[SHARE],
        saliency_mean=flow[SALIENCY_MEAN],
        saliency_sum=flow[SALIENCY_SUM],
        maps=maps,
        flags=flags,
        target_values=values,
    )


def _map(
    record: SampleRecord, name: str, signal: Signal, layers: int
) -> tuple[Float32Array, npt.NDArray[np.int8]]:
    """One signal's maps and flags, summed over layers where it says so."""
    targets, tokens = record.targets, len(record.layout.image_positions)
    summed = _summed_layers(name, signal, layers)
    values = record.stacked(name, summed or range(layers), (targets, tokens))
    if summed:
        values = values.sum(0, dtype=np.float32)[None]
    flags = np.where((values > 0).any(-1), OK, EMPTY).astype(np.int8)
    if summed:
        return values, flags
    if FEATURES in signal.all_reads:
        any_gradient = record.stacked(ANY_GRADIENT + signal.hook_point, range(layers), (targets,))
        flags[any_gradient == 0] = UNDEFINED
    else:
        without = [layer for layer in range(layers) if layer not in record.layers_with_attention]
        flags[without] = NO_ATTENTION
    return values, flags


def _summed_layers(name: str, signal: Signal, layers: int) -> range | None:
    """Which layers a sum takes; None for a signal with a map per layer."""
    if not signal.summed:
        return None
    summed = signal.summed_layers(layers)
    right = isinstance(summed, range) and summed.step == 1 and len(summed) > 0
    if not right or summed.start < 0 or summed.stop > layers:
        raise InputError(
            f"signal {name!r} sums layers {summed!r} of a model with {layers} decoder layers; "
            f"return a range of one or more of 0..{layers - 1}, one after the other, from "
            "summed_layers"
        )
    return summed


def _check_finite(values: Tensor, what: str, sample: int, *, own: bool = False) -> None:
    finite = values.isfinite()
    if not finite.all():
        where = [int(index) for index in (~finite).nonzero()[0]]
        place = f"layer {where[0]}" if values.ndim > 1 else f"answer token {where[0]}"
        way_out = "load the model in float32 or bfloat16"
        if own:
            way_out += ", or, where it is yours, see to it that of_layer divides by no zero"
        raise ModelError(f"{what} is not finite at {place} of sample {sample}; {way_out}")
