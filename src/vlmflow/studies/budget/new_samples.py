"""Budgets on new samples, each beside the truncation that costs the decoder as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median

import numpy as np

from vlmflow.errors import ModelError
from vlmflow.statistics.intervals import paired_difference
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value
from vlmflow.studies.budget.answered_split import AnsweredSplit, Answers
from vlmflow.studies.budget.equal_cost import equal_keep
from vlmflow.studies.budget.findings import BudgetRow, Tested, Way
from vlmflow.studies.budget.rungs import Rung
from vlmflow.studies.budget.settings import BudgetSettings
from vlmflow.truncation.flops import DecoderShape, layers_are_alike
from vlmflow.truncation.timing import timed_answer
from vlmflow.truncation.truncation import Truncation


def untouched_way(split: AnsweredSplit, settings: BudgetSettings) -> Way:
    """Report the model as it was given."""
    tokens = [own.tokens for own in split.untouched]
    scores = split.scores(split.untouched)
    return Way(
        fmean(tokens),
        fmean(scores),
        0,
        None,
        _seconds(split, None, None, settings, split.untouched),
    )


def report_rows(
    split: AnsweredSplit,
    rungs: Sequence[Rung],
    tested: Sequence[Tested],
    settings: BudgetSettings,
) -> tuple[BudgetRow, ...]:
    """Answer the split at every budget and truncated; p-values are corrected for all budgets."""
    rows, p_values = [], []
    for place, rung in enumerate(rungs):
        answers = split.answers(rung)
        scores = split.scores(answers)
        changed, p_value, accepted = tested[place] if place < len(tested) else (None, None, False)
        tokens = [own.tokens for own in answers if own is not None]
        row = BudgetRow(
            name=rung.name,
            tokens=rung.tokens,
            settings=rung.settings,
            changed=changed,
            p_value=p_value,
            accepted=accepted,
            way=_way(
                split, answers, scores, tokens, _seconds(split, rung, None, settings, answers)
            ),
            truncated=None,
            why_not="",
            difference=None,
            difference_p_value=None,
        )
        truncations, why_not = _equal_truncations(split, rung, answers, settings)
        row = replace(row, why_not=why_not)
        if truncations:
            other = split.truncated(truncations)
            others = split.scores(other)
            kept = [int(policy.stages[0].keep.plain) for policy in truncations]
            seconds = _seconds(split, None, truncations, settings, other)
            row = replace(row, truncated=_way(split, other, others, kept, seconds))
            if split.measuring.task.by_itself:
                p_values.append(sign_flip_p_value(np.subtract(scores, others), seed=settings.seed))
                row = replace(row, difference=paired_difference(scores, others))
        rows.append(row)
    corrected = iter(holm_adjusted(p_values))
    return tuple(
        row if row.difference is None else replace(row, difference_p_value=next(corrected))
        for row in rows
    )


def _way(
    split: AnsweredSplit,
    answers: Answers,
    scores: Sequence[float],
    tokens: Sequence[int],
    seconds: float | None,
) -> Way:
    gain = None
    if split.measuring.task.by_itself:
        gain = paired_difference(scores, split.scores(split.untouched))
    changed = int(split.changed(answers).sum())
    return Way(fmean(tokens) if tokens else 0.0, fmean(scores), changed, gain, seconds)


def _equal_truncations(
    split: AnsweredSplit, rung: Rung, answers: Answers, settings: BudgetSettings
) -> tuple[list[Truncation], str]:
    """Return each sample's truncation at the decoder's cost of a budget, or none and the reason."""
    vlm = split.measuring.vlm
    try:
        shape = DecoderShape.of(vlm.model, vlm.decoder_layers)
    except ModelError as error:
        return [], str(error)
    if not layers_are_alike(vlm.decoder_layers):
        return [], f"the decoder layers of {vlm.name} differ, so that equal cost is not counted"
    truncations = []
    for sample, whole, own in zip(split.samples, split.untouched, answers, strict=True):
        if own is None:
            return [], f"{sample.key} could not be answered at {rung.name}"
        text = whole.length - whole.tokens
        kept = equal_keep(shape, text, whole.tokens, own.length, settings.layer)
        if kept is None:
            return [], (
                f"the layers before {settings.layer} alone cost more on {whole.tokens} image "
                f"tokens than all layers on {own.tokens}"
            )
        truncations.append(Truncation(settings.layer, kept, settings.rank_by))
    return truncations, ""


def _seconds(
    split: AnsweredSplit,
    rung: Rung | None,
    truncations: Sequence[Truncation] | None,
    settings: BudgetSettings,
    answers: Answers,
) -> float | None:
    """Time the prefills of some samples that could be answered so; the median."""
    vlm = split.measuring.model_at(rung)
    seconds = []
    for place, sample in enumerate(split.samples[: settings.timed]):
        if answers[place] is None:
            continue
        truncation = None if truncations is None else truncations[place]
        prompt = split.measuring.prompt(sample, rung)
        seconds.append(timed_answer(vlm, prompt, truncation, max_new_tokens=1).prefill)
    return median(seconds) if seconds else None
