"""Write the claims page and its figure from what is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.claims.claims import CLAIM_7, CLAIMS
from benchmarks.claims.evidence import CHANGED, TASKS, Evidence
from benchmarks.claims.rules import Verdict, decoder_not_connector, overall
from vlmflow.files import write_files
from vlmflow.removal.cliff import cliff_layer
from vlmflow.reports.figures.figure_files import figure_files
from vlmflow.reports.figures.style import figure_style
from vlmflow.reports.palette import GREY, SERIES
from vlmflow.studies.truncations.arms import NO_IMAGE

COMMAND = "python -m benchmarks.claims"
FIGURE = "claims-removal"

_HEAD = f"""# The paper's claims, put to the test

`{COMMAND} page` writes this page from stored results, which `{COMMAND} measure` makes;
nothing here is typed by hand. What it is made from lies in `benchmarks/claims/measured`. The
rules were committed before anything was measured
(`benchmarks/claims/claims.py`). They read the test split; whatever is chosen (a cliff layer, a
setting) is chosen on the calibration split. Intervals are 95 % for all tasks of a model and claim
together (Bonferroni) where scores or cliff layers are compared, else 95 % each. Paired differences
have the adjusted Wald interval, everything else Wilson's or the bootstrap's (2,000 draws, seed 0).

A claim **holds** on a model if it holds on every task it was tested on, and **fails** if it fails
on one. **Cannot tell** is an answer. The bundled models are small and know drawn scenes only: what
holds here need not hold for a 7B model, and the same command judges that one too
(`{COMMAND} measure --models DIRECTORY`).
"""


def page(models: Mapping[str, Sequence[Evidence]]) -> str:
    """Write the page: an overview, the figure, then claim by claim."""
    names = list(models)
    verdicts = {
        (claim.number, name): claim.judge(tasks)
        for claim in CLAIMS
        for name, tasks in models.items()
    }
    seventh = decoder_not_connector(models)
    lines = [_HEAD, "## Overview", ""]
    lines += _row("claim", "", *(f"`{name}`" for name in names))
    lines += _row("---", "---", *("---" for _ in names))
    for claim in CLAIMS:
        words = (f"**{overall(verdicts[claim.number, name])}**" for name in names)
        lines += _row(claim.number, claim.text, *words)
    lines += _row(CLAIM_7.number, CLAIM_7.text, f"**{seventh.word}**", *("" for _ in names[1:]))
    lines += [
        "",
        "## Cliff layers of all models",
        "",
        f"![Removal curves](figures/{FIGURE}.png)",
        "",
    ]
    lines += [
        "Share of answers that change when all image tokens are removed from a layer on, over "
        "relative depth (layer / L).",
        "",
    ]
    lines += _samples(models)
    for claim in CLAIMS:
        lines += [
            "",
            f"## {claim.number}. {claim.text}",
            "",
            f"*Paper: {claim.source}.* {claim.rule}",
            "",
        ]
        lines += _row("model", "on", "verdict", "measured")
        lines += _row("---", "---", "---", "---")
        for name in names:
            for verdict in verdicts[claim.number, name]:
                lines += _row(f"`{name}`", verdict.where, verdict.word, verdict.figure)
    lines += [
        "",
        f"## {CLAIM_7.number}. {CLAIM_7.text}",
        "",
        f"*Paper: {CLAIM_7.source}.* {CLAIM_7.rule}",
        "",
    ]
    lines += [f"{seventh.word}: {seventh.figure}.", ""]
    return "\n".join(lines)


def removal_figure(models: Mapping[str, Sequence[Evidence]]) -> Figure:
    """Draw the removal curves of all models, a panel per task, over relative depth."""
    with figure_style():
        drawn = _measured_tasks(models)
        rows = -(-len(drawn) // 2)
        figure = Figure(figsize=(7.2, 2.2 * rows), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
        panels = grid[: len(drawn)]
        for empty in grid[len(drawn) :]:
            empty.remove()
        for panel, task in zip(panels, drawn, strict=True):
            panel.set_title(task, loc="left")
            panel.axhline(CHANGED, color=GREY, linewidth=0.8, linestyle=":")
            for colour, (name, tasks) in zip(SERIES, models.items(), strict=False):
                for measured in tasks:
                    if measured.task == task:
                        depth = np.arange(measured.layers) / measured.layers
                        mean = measured.changed.mean(0)
                        panel.plot(
                            depth, mean, color=colour, marker="o", markersize=2.5, label=name
                        )
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
            panel.set_ylim(-0.03, 1.03)
        for panel in panels[-2:]:
            panel.set_xlabel("layer / number of layers")
            panel.tick_params(labelbottom=True)
        # Every model once, whichever panels it is in.
        drawn_lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
        named = [name for name in models if name in drawn_lines]
        panels[0].legend([drawn_lines[name] for name in named], named, frameon=False)
    return figure


def _measured_tasks(models: Mapping[str, Sequence[Evidence]]) -> list[str]:
    measured = {own.task for tasks in models.values() for own in tasks}
    return [task for task in TASKS if task in measured]


def write(models: Mapping[str, Sequence[Evidence]], docs: Path) -> None:
    """Write ``claims.md`` and its figure into the documentation."""
    write_files(docs / "figures", figure_files({FIGURE: removal_figure(models)}, ("png",)))
    write_files(docs, {"claims.md": page(models).encode()})


def _samples(models: Mapping[str, Sequence[Evidence]]) -> list[str]:
    head = (
        "score untouched",
        "without image tokens",
        "n",
        "to choose on",
        "number format",
        "cliff by changed answers",
        "of depth",
    )
    lines = _row("model", "task", *head)
    lines += _row(*("---" for _ in range(2 + len(head))))
    for name, tasks in models.items():
        cliffs = {verdict.where: verdict.figure for verdict in _cliffs(tasks)}
        for task in tasks:
            blind = float(task.scores["test", NO_IMAGE].mean())
            layer = cliff_layer(task.changed.mean(0), range(task.layers), CHANGED)
            lines += _row(
                f"`{name}`",
                task.task,
                f"{100 * task.score:.1f} %",
                f"{100 * blind:.1f} %",
                str(len(task.changed)),
                str(len(task.scores["calibration", NO_IMAGE])),
                task.dtype,
                cliffs[task.task],
                "" if layer is None else f"{100 * layer / task.layers:.0f} %",
            )
    missing = [
        f"{name} on {task}"
        for name, tasks in models.items()
        for task in TASKS
        if task not in {own.task for own in tasks}
    ]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return lines


def _cliffs(tasks: Sequence[Evidence]) -> list[Verdict]:
    (claim,) = (claim for claim in CLAIMS if claim.number == "3")
    return claim.judge(tasks)


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
