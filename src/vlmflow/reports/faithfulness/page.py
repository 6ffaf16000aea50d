"""The page of a study of faithfulness: one HTML file that opens offline and asks for nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlmflow.escape_invisible import shown
from vlmflow.reports.faithfulness import figure
from vlmflow.reports.inline_svg import inline_figure
from vlmflow.reports.plain_page import plain_page
from vlmflow.studies.cliff_layer.sentences import failed_words
from vlmflow.studies.faithfulness.sentences import (
    NAME_SHOWN,
    WAYS,
    caveats,
    chance_words,
    headline,
    main_rows,
    second_line,
    with_interval,
)
from vlmflow.trust.variants import PROBABILITY

if TYPE_CHECKING:
    from vlmflow.studies.faithfulness.study import FaithfulnessStudy

SAMPLES_SHOWN, FAILURES_SHOWN, TEXT_SHOWN = 200, 200, 600


def faithfulness_page(study: FaithfulnessStudy) -> str:
    """Write a study as one page of HTML; texts are escaped, and it has no scripts."""
    frame = study.map_frame()
    samples = study.sample_frame()
    return plain_page("faithfulness.html.j2").render(
        model=shown(str(study.model["name"]), NAME_SHOWN),
        headline=headline(study.facts, frame),
        second=second_line(study.facts),
        caveats=[
            *caveats(study.facts, frame),
            *(shown(line, TEXT_SHOWN) for line in study.combined_lines()),
        ],
        ways={name: WAYS[name] for name in study.settings.shown},
        differences=inline_figure(
            lambda layout: figure.difference_figure(study, frame, layout),
            "Insertion minus deletion of every map with its interval, by replacement; every number "
            "is in the table below",
        ),
        note=figure.note(study),
        curves=inline_figure(
            lambda layout: figure.curve_figure(study, frame, layout),
            "Mean probability of the answer as the picture appears and vanishes, in the order of "
            "the best maps and of random ones",
        ),
        cost=inline_figure(
            lambda layout: figure.cost_figure(study, frame, layout),
            "Insertion minus deletion of every signal against the time of an explanation",
        )
        if study.costs
        else None,
        rows=main_rows(study.facts, frame),
        pictures=[_picture(row) for row in _records(study.picture_frame())],
        variants=_variants(study, frame),
        places=[_place(study, row) for row in _records(study.place_frame())],
        agreement=_agreement(study),
        drawn=_drawn(study),
        costs=[{**row, "map": study.label(row["map"])} for row in _records(study.cost_frame())],
        choices=_choices(study),
        samples=[_sample(row) for row in _records(samples.head(SAMPLES_SHOWN))],
        hidden=max(0, len(samples) - SAMPLES_SHOWN),
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
        settings={**asdict(study.settings), **study.model},
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _picture(row: dict[str, Any]) -> dict[str, str]:
    names = ("with picture", "replaced", "no image token")
    return {"replacement": row["replacement"]} | {
        name: with_interval(row, name, sign="") for name in names
    }


def _variants(study: FaithfulnessStudy, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the scores beside mean probability."""
    return [
        {
            "replacement": row["replacement"],
            "score": row["score"],
            "map": study.label(row["map"]),
            "difference": with_interval(row, "difference"),
            "chance": chance_words(row),
            "n": row["n"],
            "left_out": row["left out"],
            "undefined": row["undefined"],
        }
        for row in _records(frame[frame["score"] != PROBABILITY])
    ]


def _place(study: FaithfulnessStudy, row: dict[str, Any]) -> dict[str, Any]:
    figures = {
        figure.replace(" ", "_"): with_interval(row, figure, sign="")
        for figure in ("energy", "object iou", "function iou", "f1 iou")
    }
    return {
        "map": study.label(row["map"]),
        "hits": f"{100 * row['hits']:.1f} %",
        "hit_ends": f"{100 * row['hits low']:.1f} to {100 * row['hits high']:.1f}",
        "ties": row["ties"],
        "empty": row["empty"],
        **figures,
    }


def _agreement(study: FaithfulnessStudy) -> list[dict[str, Any]]:
    """Return the table of agreement: one row per map, one cell per map."""
    correlations = {
        frozenset((row["map"], row["other"])): row["rank correlation"]
        for row in _records(study.agreement_frame())
    }
    return [
        {
            "map": study.label(name),
            "cells": [
                "1" if name == other else _two(correlations[frozenset((name, other))])
                for other in study.maps
            ],
        }
        for name in study.maps
    ]


def _drawn(study: FaithfulnessStudy) -> list[dict[str, Any]]:
    frame = study.drawn_frame()
    if not len(frame):
        return []
    return [
        {
            "map": study.label(str(name)),
            "cells": [with_interval(row, "rank correlation", 2, "") for row in _records(own)],
            "constant": int(own["constant"].sum()),
            "failed": int(own["failed"].sum()),
        }
        for name, own in frame.groupby("map", sort=False)
    ]


def _choices(study: FaithfulnessStudy) -> list[dict[str, Any]]:
    rows = []
    for choice in study.choices:
        if choice.difference is None:
            continue
        ends = {"difference": choice.difference, "difference low": choice.low,
                "difference high": choice.high}  # fmt: skip
        rows.append(
            {
                "map": study.about[choice.signal].label,
                "layer": choice.layer,
                "defined": "" if choice.defined is None else f"{100 * choice.defined:.0f} %",
                "difference": with_interval(ends, "difference"),
                "chosen": choice.chosen,
            }
        )
    return rows


def _sample(row: dict[str, Any]) -> dict[str, str]:
    failed = row["failure"] is not None and row["failure"] == row["failure"]
    return {
        "question": shown(str(row["question"]), TEXT_SHOWN),
        "answer": "" if failed else shown(str(row["answer"]), TEXT_SHOWN),
        "reference": shown(str(row["reference"]), TEXT_SHOWN),
        "score": "failed" if failed else f"{row['score']:.2f}",
    }


def _two(value: float) -> str:
    return "" if value != value else f"{value:.2f}"
