"""The page of a cliff study: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from vlmflow.escape_invisible import shown
from vlmflow.reports.cliff.figure import cliff_figure, note
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.studies.cliff_layer import sentences
from vlmflow.studies.cliff_layer.knockout import ONWARDS, SINGLE
from vlmflow.studies.cliff_layer.sentences import (
    NAME_SHOWN,
    error_words,
    failed_words,
    rank_words,
)

if TYPE_CHECKING:
    from vlmflow.studies.cliff_layer.study import CliffStudy

SAMPLES_SHOWN, FAILURES_SHOWN, TEXT_SHOWN = 200, 200, 600


def cliff_page(study: CliffStudy) -> str:
    """Write a study as one page of HTML; texts are escaped, and it has no scripts."""
    frame = study.sample_frame()
    end = study.layers[-1] + 1
    samples = [
        {
            "question": shown(str(row["question"]), TEXT_SHOWN),
            "answer": "" if row["failure"] else shown(str(row["answer"]), TEXT_SHOWN),
            "reference": shown(str(row["reference"]), TEXT_SHOWN),
            "score": "" if row["failure"] else f"{row['score']:.2f}",
            "cliff": "failed" if row["failure"] else "no answer" if pd.isna(row["cliff"])
            else "none" if row["cliff"] == end else int(row["cliff"]),
        }
        for row in frame.head(SAMPLES_SHOWN).to_dict("records")
    ]  # fmt: skip
    return plain_page("cliff.html.j2").render(
        task=shown(study.task, NAME_SHOWN),
        model=shown(str(study.model["name"]), NAME_SHOWN),
        headline=headline(study),
        second=second_line(study),
        figure=inline_figure(
            lambda layout: cliff_figure(study, layout),
            "Curves of changed answers and of mean KL by layer, cliff layers of single samples, "
            "and signals by layer; every number is in the tables below",
        ),
        note=note(study),
        knockout=str(study.knockout_figures() or ""),
        cut_off=(ONWARDS, SINGLE),
        layers=study.layer_frame().to_dict("records"),
        predictions=[
            {
                "signal": prediction.signal,
                "error": error_words(prediction),
                "rank": rank_words(prediction),
                "threshold": "" if prediction.threshold is None else f"{prediction.threshold:.2f}",
            }
            for prediction in study.predictions
        ],
        samples=samples,
        hidden=max(0, len(frame) - SAMPLES_SHOWN),
        failed=failed_words(study.failures),
        failures=[
            {
                "key": shown(failure.key, NAME_SHOWN),
                "split": failure.split,
                "reason": shown(failure.reason, TEXT_SHOWN),
            }
            for failure in study.failures[:FAILURES_SHOWN]
        ],
        failures_hidden=max(0, len(study.failures) - FAILURES_SHOWN),
        settings={**study.settings, **study.model},
        kl=study.kl,
        changed=study.changed,
    )


def headline(study: CliffStudy) -> str:
    """Say the finding in one sentence."""
    return sentences.headline(study.task, study.changed, len(study.layers))


def second_line(study: CliffStudy) -> str:
    """Say how sure that is, and where mean KL puts the cliff."""
    failed = f"{failed_words(study.failures)}. " if study.failures else ""
    return (
        f"{len(study.curves)} samples, {study.metric} {100 * study.score:.1f} %. By changed "
        f"answers {sentences.cliff_words(study.changed)}; by mean KL (at most "
        f"{study.kl.tolerance:g} nats) {sentences.cliff_words(study.kl)}. {failed}Layers are "
        "counted from 0."
    )
