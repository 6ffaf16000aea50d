"""What a batch of answered prompts shares: one forward pass, backward passes, one without pictures.

Explaining one answer is a batch of one. In a batch, rows are padded on the left and do not see each
other, so that each is measured as it is alone, up to rounding. All of this is measured together:
attention and saliency between segments, the maps that one forward and backward pass shows (with
``per_token`` as many backward passes as the longest answer has tokens), attention of text rows, the
answer's probability without the picture. What is not:

* Signals with passes of their own, over noisy pictures or along a path run one answer after the
  other, after the shared passes, and so do maps that are made of others'
  (:func:`vlmflow.explanation.explain.information_flow`).
* Answers of different length with ``per_token``: every row would run as often as the longest has
  tokens.
* Families that learn from the run itself which pixels a token shows (BLIP-2) are answered together
  and measured one by one.
* What a model does not take in one batch raises: videos of different lengths, videos beside
  pictures, or pictures of different shape where transformers wants them alike. The caller explains
  such prompts alone (:meth:`vlmflow.studies.batching.batches.Batches.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from vlmflow.explanation.answering import Answered
from vlmflow.explanation.combined_map import with_parts
from vlmflow.explanation.without_picture import picture_effects
from vlmflow.flow.measure import Measurement, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.build_layout import recorded_layout
from vlmflow.lvlm.grids import IntArray
from vlmflow.lvlm.model import LVLM
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.result.text_attention import kept_rows

_ALIKE = 0.8
"""Of the longest answer's tokens that each has that is measured with it, token by token."""


@dataclass(frozen=True, eq=False)
class SharedMeasurement:
    """What the passes that all signals share show of one answer."""

    answered: Answered  # Its layout has the grids that are known after the run
    measured: Measurement  # Of the prompt's own N positions
    rows: IntArray  # (K,): positions whose attention is kept
    effect: PictureEffect | None
    batch: int  # Answers that were measured together, this one included


def signals_at_once(options: ExplainOptions) -> dict[str, Signal]:
    """Return the signals that the shared passes show, also those that others are made of."""
    signals = with_parts(options).named
    return {name: signal for name, signal in signals.items() if signal.in_one_pass}


def measured_together(
    vlm: LVLM,
    answered: Sequence[Answered],
    options: ExplainOptions,
    *,
    on_pass: Callable[[], None] | None = None,
) -> list[SharedMeasurement]:
    """Measure a batch of answers in the passes that all signals share.

    Parameters
    ----------
    vlm, answered : LVLM, sequence of Answered
        The model, left exactly as found, and the prompts with their answers.
    options : ExplainOptions
        What is wanted.
    on_pass : callable, optional
        Called after each pass but that without pictures.

    Raises
    ------
    InputError
        For a signal that does not fit the model, or prompts that it does not take together.
    ModelError
        If logits or gradients are not finite, or the model cannot be followed.
    """
    if not answered:
        return []
    groups = _groups(answered, per_token=options.per_token, alone=vlm.family.has_recorded_grids)
    if len(groups) > 1:
        measured: dict[int, SharedMeasurement] = {}
        for places in groups:
            own = [answered[place] for place in places]
            together = measured_together(vlm, own, options, on_pass=on_pass)
            measured.update(zip(places, together, strict=True))
        return [measured[place] for place in range(len(answered))]
    prompts = [own.prompt for own in answered]
    inputs, layouts = collate(prompts, pad_id(vlm.processor.tokenizer))
    # Rows are chosen by the prompt's own length, whatever stands beside it in the batch.
    rows = [kept_rows(prompt.layout, vlm.num_layers) for prompt in prompts]
    padding = [len(layouts[0]) - len(prompt.layout) for prompt in prompts]
    with ExitStack() as stack:
        layouts_after_run = [
            stack.enter_context(recorded_layout(vlm.model, vlm.processor, vlm.family, prompt))
            for prompt in prompts
        ]
        measurements = measure(
            vlm.model,
            vlm.decoder_layers,
            inputs,
            layouts,
            options,
            signals=signals_at_once(options),
            kept_rows=[own + offset for own, offset in zip(rows, padding, strict=True)],
            on_pass=on_pass,
        )
    effects = picture_effects(vlm, prompts, [own.log_probabilities for own in measurements])
    final = [layout_after_run() for layout_after_run in layouts_after_run]
    return [
        SharedMeasurement(
            replace(own, prompt=replace(own.prompt, layout=layout)),
            _without_padding(measured, offset),
            kept,
            effect,
            len(prompts),
        )
        for own, layout, measured, offset, kept, effect in zip(
            answered, final, measurements, padding, rows, effects, strict=True
        )
    ]


def _groups(answered: Sequence[Answered], *, per_token: bool, alone: bool) -> list[list[int]]:
    """Say which answers are measured together, by their places.

    With a backward pass per token, all rows run as often as the longest answer has tokens: answers
    go together whose lengths are within :data:`_ALIKE` of each other.
    """
    if alone:
        return [[place] for place in range(len(answered))]
    lengths = [len(own.prompt.answer_ids) for own in answered]
    if not per_token:
        return [list(range(len(answered)))]
    groups: list[list[int]] = []
    for place in sorted(range(len(answered)), key=lambda place: -lengths[place]):
        if not groups or lengths[place] < _ALIKE * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(place)
    return groups


def _without_padding(measured: Measurement, padding: int) -> Measurement:
    """Count positions from the prompt's first: nobody attends to padding."""
    return replace(
        measured, kept_attention=np.ascontiguousarray(measured.kept_attention[..., padding:])
    )
