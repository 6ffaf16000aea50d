"""From what a pass shows to numbers: every signal per layer and target, reduced at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from vlmflow.flow.sample_record import (
    ANY_GRADIENT,
    SALIENCY_MEAN,
    SALIENCY_SUM,
    SHARE,
    PathPoint,
    SampleRecord,
)
from vlmflow.flow.signals.readings import FEATURES
from vlmflow.flow.signals.signal import Signal
from vlmflow.flow.targets import target_values
from vlmflow.lvlm.grids import IntArray
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout

Float32Array = npt.NDArray[np.float32]

HELD_BYTES = 256 * 2**20
"""Memory for attention that is kept between the passes of a batch's tokens, not with low memory."""

OK, UNDEFINED, EMPTY, NO_ATTENTION = range(len(FLAGS))


@dataclass(frozen=True, eq=False)
class Measurement:
    """What one row of the batch draws on.

    ``L`` layers, ``G`` targets (the whole answer, then its tokens if each was explained), ``P``
    image tokens, ``S`` segments, ``T`` answer tokens.
    """

    attention_share: Float32Array  # (L, G, S); all 0 in layers without attention
    saliency_mean: Float32Array  # (L, G, 2, S): into user and answer rows; 0 without gradients
    saliency_sum: Float32Array
    maps: dict[str, Float32Array]  # (L, G, P) per signal; (1, G, P) where it sums over layers
    flags: dict[str, npt.NDArray[np.int8]]  # (L, G) per map: index into FLAGS
    target_values: Float32Array  # (T,)
    log_probabilities: Float32Array  # (T,): of the answer's tokens
    kept_attention: npt.NDArray[np.float16]  # (L, K, N): of the rows that were to be kept


def count_passes(
    layouts: Sequence[TokenLayout], options: ExplainOptions, signals: Iterable[Signal] = ()
) -> int:
    """Count the passes of :func:`measure`: one forward, and one backward per target.

    With a pass per token, the whole answer has one more where a signal needs it.
    """
    longest = max(len(layout.answer_positions) for layout in layouts)
    backward = longest + any(s.needs_whole_pass for s in signals) if options.per_token else 1
    return 1 + options.gradients * backward


def measure(
    model: nn.Module,
    layers: nn.ModuleList,
    inputs: Mapping[str, Any],
    layouts: Sequence[TokenLayout],
    options: ExplainOptions,
    *,
    signals: Mapping[str, Signal] | None = None,
    segments: bool = True,
    path: Sequence[PathPoint] | None = None,
    kept_rows: Sequence[IntArray] | None = None,
    on_pass: Callable[[], None] | None = None,
) -> list[Measurement]:
    """Measure a batch in one forward pass and, with gradients, one backward pass per target.

    With ``per_token`` the longest answer of T tokens takes T backward passes, and the whole answer
    is the sum of what they give: all signals but the last absolute value or ReLU are linear in the
    target (signals that are not take one more pass for it). Without it, one backward pass explains
    the whole answer alone.

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
    path : sequence of B PathPoint, optional
        Where the image embeddings of every row stand on a path.
    kept_rows : sequence of B arrays of int, optional
        Positions of text, sorted, whose attention to every position is kept (not of maps alone).
    on_pass : callable, optional
        Called after each pass.

    Raises
    ------
    InputError
        For a signal that does not fit the model or takes passes of its own.
    ModelError
        If logits or gradients are not finite, or the model cannot be followed.
    """
    chosen = options.named if signals is None else signals
    for name, signal in chosen.items():
        if signal.has_own_passes:
            raise InputError(
                f"signal {name!r} runs passes of its own, about one answer at a time; measure it "
                "with vlm.explain"
            )
        if signal.made_of:
            raise InputError(
                f"signal {name!r} is made of other signals' maps; measure it with vlm.explain"
            )
    layers_of = {name: _layers_of(name, signal, len(layers)) for name, signal in chosen.items()}
    on_pass = on_pass or (lambda: None)
    held_bytes = HELD_BYTES * (options.per_token and not options.low_memory)
    records = [
        SampleRecord(
            index,
            layout,
            options.per_token,
            chosen,
            layers_of,
            None if path is None else path[index],
            None if kept_rows is None else kept_rows[index],
            held_bytes=held_bytes // len(layouts),
        )
        for index, layout in enumerate(layouts)
    ]
    rows = np.unique(np.concatenate([layout.answer_rows for layout in layouts]))
    input_ids: Tensor = inputs["input_ids"]
    with capture(
        model,
        layers,
        records,
        attention=segments or any(FEATURES not in s.all_reads for s in chosen.values()),
        hooks=_hooks(chosen, layers_of),
        low_memory=options.low_memory,
        gradients=options.gradients,
    ) as running:
        logits = running.forward(inputs, torch.from_numpy(rows).to(input_ids.device))
        on_pass()
        targets, values, logprobs = [], [], []
        for index, layout in enumerate(layouts):
            at = torch.from_numpy(np.searchsorted(rows, layout.answer_rows)).to(logits.device)
            ids = input_ids[index, torch.from_numpy(layout.answer_positions).to(input_ids.device)]
            at_answer, ids = logits[index, at], ids.to(logits.device)
            targets.append(target_values(at_answer, ids, options.scalar))
            values.append(targets[-1].detach().float().cpu().numpy())
            _check_finite(values[-1], "the target", index)
            with torch.no_grad():
                logprobs.append(target_values(at_answer, ids, "logprob").float().cpu().numpy())
        del logits
        whole = any(signal.needs_whole_pass for signal in chosen.values())
        scalars = _scalars(targets, options.per_token, whole=whole)
        for number, scalar, last in scalars * options.gradients:
            running.backward(number, scalar, last=last)
            on_pass()
    return [
        _finish(record, len(layers), answer, segments=segments, gradients=options.gradients)
        for record, *answer in zip(records, values, logprobs, strict=True)
    ]


def _hooks(signals: Mapping[str, Signal], layers_of: Mapping[str, range]) -> dict[str, set[int]]:
    """Name the hook points for features, and the layers where some signal reads them."""
    hooks: dict[str, set[int]] = {}
    for name, signal in signals.items():
        if FEATURES in signal.all_reads:
            hooks.setdefault(signal.hook_point, set()).update(layers_of[name])
    return hooks


def _scalars(
    values: list[Tensor], per_token: bool, *, whole: bool
) -> list[tuple[int, Tensor, bool]]:
    """List the targets: number (0: whole answer), scalar to go back from, whether it is last.

    Rows of a batch do not see each other, so one scalar serves them all. ``whole``: the whole
    answer has a pass beside those of its tokens.
    """
    answer = 0, torch.stack([value.sum() for value in values]).sum()
    if not per_token:
        return [(*answer, True)]
    longest = max(len(value) for value in values)
    scalars = [
        (token + 1, torch.stack([value[token] for value in values if len(value) > token]).sum())
        for token in range(longest)
    ]
    scalars += [answer] * whole
    return [
        (number, scalar, place + 1 == len(scalars))
        for place, (number, scalar) in enumerate(scalars)
    ]


def _finish(
    record: SampleRecord,
    layers: int,
    answer: Sequence[Float32Array],
    *,
    segments: bool,
    gradients: bool,
) -> Measurement:
    """Stack what was recorded, and flag every map."""
    of_segments = (record.targets, len(SEGMENTS))
    of_pairs = (record.targets, len(DESTINATIONS), len(SEGMENTS))
    flow = {}
    for name, shape in {
        SHARE: of_segments,
        SALIENCY_MEAN: of_pairs,
        SALIENCY_SUM: of_pairs,
    }.items():
        if segments and (gradients or name == SHARE):
            flow[name] = record.stacked(name, range(layers), shape)
        else:
            flow[name] = np.zeros((layers, *shape), dtype=np.float32)
    maps, flags = {}, {}
    for name, signal in record.signals.items():
        maps[name], flags[name] = _map(record, name, signal, layers)
    for name, array in {**flow, **maps}.items():
        _check_finite(array, f"the {name} signal", record.index, own=name in maps)
    kept = record.kept_attention(layers)
    _check_finite(kept, "attention", record.index)
    values, logprobs = answer
    return Measurement(
        flow[SHARE], flow[SALIENCY_MEAN], flow[SALIENCY_SUM], maps, flags, values, logprobs, kept
    )


def _layers_of(name: str, signal: Signal, layers: int) -> range:
    """Return the layers that a signal has maps of, or that its map sums."""
    if not signal.summed:
        return range(layers)
    summed = signal.summed_layers(layers)
    right = isinstance(summed, range) and summed.step == 1 and len(summed) > 0
    if not right or summed.start < 0 or summed.stop > layers:
        raise InputError(
            f"signal {name!r} sums layers {summed!r} of a model with {layers} decoder layers; "
            f"return a range of one or more of 0..{layers - 1}, one after the other, from "
            "summed_layers"
        )
    return summed


def _map(
    record: SampleRecord, name: str, signal: Signal, layers: int
) -> tuple[Float32Array, npt.NDArray[np.int8]]:
    """One signal's maps and flags, summed over layers where it says so."""
    values = record.stacked(
        name, record.layers_of[name], (record.targets, len(record.layout.image_positions))
    )
    if signal.summed:
        values = values.sum(0, dtype=np.float32)[None]
    flags = np.where((values > 0).any(-1), OK, EMPTY).astype(np.int8)
    if not signal.summed and FEATURES in signal.all_reads:
        any_gradient = ANY_GRADIENT + signal.hook_point
        flags[record.stacked(any_gradient, range(layers), (record.targets,)) == 0] = UNDEFINED
    elif not signal.summed:
        flags[[layer not in record.layers_with_attention for layer in range(layers)]] = NO_ATTENTION
    return values, flags


def _check_finite(
    values: npt.NDArray[np.floating[Any]], what: str, sample: int, *, own: bool = False
) -> None:
    if not np.isfinite(values).all():
        first = np.argwhere(~np.isfinite(values))[0, 0]
        place = f"layer {first}" if values.ndim > 1 else f"answer token {first}"
        way_out = "load the model in float32 or bfloat16"
        if own:
            way_out += ", or, where it is yours, make sure that of_layer never divides by zero"
        raise ModelError(f"{what} is not finite at {place} of sample {sample}; {way_out}")
