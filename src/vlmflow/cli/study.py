"""``vlmflow study`` and ``vlmflow report``: compare truncations over a data set."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.budget import print_budget
from vlmflow.cli.certify import print_certificate
from vlmflow.cli.cliff import print_cliff
from vlmflow.cli.compare import print_comparison
from vlmflow.cli.explained_report import is_explained, write_explained
from vlmflow.cli.faithfulness import print_faithfulness
from vlmflow.cli.reproduce import print_reproduction
from vlmflow.cli.study_import import import_study, print_imported
from vlmflow.cli.terminal import (
    CONTINUES,
    columns,
    errors_in_one_line,
    notes,
    pace_words,
    printable,
    progress,
    quiet_libraries,
)
from vlmflow.errors import InputError

if TYPE_CHECKING:
    from vlmflow.reports.directory import Study
    from vlmflow.studies.store_kind import StoreKind
    from vlmflow.studies.truncations.results import StudyResult
    from vlmflow.studies.truncations.run import Progress
    from vlmflow.studies.truncations.summaries import ArmSummary


@app.command()
def study(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG",
            parser=options.path,
            help="YAML file; options override what it says.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=options.path,
            help="Directory of the study; an unfinished one is continued.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="What 'vlmflow tasks' lists.")] = None,
    model: Annotated[str | None, typer.Option(help=options.MODEL_HELP, show_default=MODEL)] = None,
    truncate: Annotated[
        list[str] | None, typer.Option(help="For example layer=6,keep=0; may be repeated.")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="What 'vlmflow presets' lists; may be repeated.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples of the test split.", show_default="200")
    ] = None,
    calibration: Annotated[
        int | None, typer.Option(help="Samples to choose a truncation on.", show_default="200")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="Loss of score that a recommendation may cost.", show_default="0.03"),
    ] = None,
    timed: Annotated[
        int | None, typer.Option(help="Samples whose prefill is timed.", show_default="4")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of random tokens and bootstraps.", show_default="0")
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            help="What truncations are held against, or 'none'.",
            show_default="random,down-sampled",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="'ray' or 'ray:N' spreads the work.", show_default="this process"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Answer the first 20 samples, say what all will take, and stop; they are kept.",
        ),
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="[NAME=]DIR",
            help="A run of lmms-eval with --log_samples, by its --output_path; repeatable, one of "
            "them untouched. Nothing is run.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Of imported runs.", show_default="the first that scores every sample"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            parser=options.at_once,
            help="Samples at once; auto: as many as memory holds.",
            show_default="auto",
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
) -> None:
    """Compare truncations over a task, beside their controls, and recommend one or none.

    A study that was interrupted continues when the same command is given again. With --import it
    reads what lmms-eval has logged instead.
    """
    with errors_in_one_line(CONTINUES):
        if out is None:
            raise InputError("a study needs --out DIR to keep its results in")
        overrides = {
            "task": task,
            "model": model,
            "samples": samples,
            "calibration": calibration,
            "max_loss": max_loss,
            "timed": timed,
            "seed": seed,
            "controls": controls and [name for name in controls.split(",") if name != "none"],
            "batch": batch and options.as_batch(batch),
            "device": device,
            "dtype": dtype and dtype.value,
            "revision": revision,
        }
        if imports:
            more = {
                "config": config, "metric": metric, "truncate": truncate, "preset": preset,
                "workers": workers, "plan": dry_run or None,
            }  # fmt: skip
            given = {name: value for name, value in (overrides | more).items() if value is not None}
            import_study(imports, out, given)
            return
        if metric is not None:
            raise InputError("--metric is for runs that are imported; add --import DIR")
        plain = _settings(config, overrides, truncate or [], preset or [])
        with progress() as show:
            show("Checking the study")
            quiet_libraries()
            from vlmflow.studies.truncations.plan import Plan
            from vlmflow.studies.truncations.workers import run_with

            plan = Plan.from_mapping(plain)

            began = time.monotonic()

            def show_progress(now: Progress) -> None:
                pace = pace_words(now.new, time.monotonic() - began)
                line = f"{plan.task}: {now.done} of {now.total} samples, {pace}"
                if now.score is not None:
                    line += f", untouched {100 * now.score:.1f} %"
                show(line, now.done, now.total)

            show(f"Loading {plan.model}")
            with notes():
                if dry_run:
                    from vlmflow.studies.truncations.dry_run import estimate_study

                    estimate = estimate_study(plan, out, progress=show_progress)
                else:
                    run_with(workers, plan, out, show_progress)
            if dry_run:
                for line in estimate.lines():
                    typer.echo(line)
                return
            show("Writing")
            from vlmflow.reports.directory import write_directory
            from vlmflow.studies.truncations.results import read_study

            result = read_study(out)
            page = write_directory(result, out)
    _print(result)
    typer.echo(f"\nwritten to {printable(str(page))}")


@app.command()
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            parser=options.path,
            help="Directory of 'vlmflow study', 'cliff', 'faithfulness', 'certify', 'compare', "
            "'reproduce' or 'explain'; two of the last are set side by side.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=options.path,
            help="Where to write.",
            show_default="the directory itself",
        ),
    ] = None,
) -> None:
    """Write a finished study's page, figures and tables again, of whatever kind it is.

    Of an explained answer it writes the page, and of two a page on the first with the maps of the
    second beside its own.
    """
    directory = directories[0]
    with errors_in_one_line(), progress() as show:
        show("Writing")
        quiet_libraries()
        explained = len(directories) > 1 or is_explained(directory)
        answers = [write_explained(directories, out)] if explained else []
        from vlmflow.reports.directory import write_directory
        from vlmflow.reports.reproduction.directory import write_reproduction
        from vlmflow.reproductions.run import is_reproduction, read_reproduction
        from vlmflow.studies.budget.result import TokenBudget
        from vlmflow.studies.budget.run import read_budget
        from vlmflow.studies.budget.store import BUDGET
        from vlmflow.studies.certification.certificate import Certificate
        from vlmflow.studies.certification.run import read_certificate
        from vlmflow.studies.certification.store import CERTIFY
        from vlmflow.studies.cliff_layer.run import read_cliff_study
        from vlmflow.studies.cliff_layer.store import CLIFF
        from vlmflow.studies.cliff_layer.study import CliffStudy
        from vlmflow.studies.comparison.comparison import Comparison
        from vlmflow.studies.comparison.read import read_comparison_or_study
        from vlmflow.studies.faithfulness.run import read_faithfulness
        from vlmflow.studies.faithfulness.store import FAITHFULNESS
        from vlmflow.studies.faithfulness.study import FaithfulnessStudy
        from vlmflow.studies.imported.store import IMPORTED, read_imported
        from vlmflow.studies.imported.study import ImportedStudy
        from vlmflow.studies.truncations.store import STUDY

        kinds: list[tuple[StoreKind, Callable[[Path], Study]]] = [
            (STUDY, read_comparison_or_study),
            (CLIFF, read_cliff_study),
            (FAITHFULNESS, read_faithfulness),
            (CERTIFY, read_certificate),
            (BUDGET, read_budget),
            (IMPORTED, read_imported),
        ]
        present = [read for kind, read in kinds if (directory / kind.file).is_file()]
        again = []
        if len(directories) == 1 and is_reproduction(directory):
            again = [read_reproduction(directory)]
        if len(directories) > 1:
            present = []
        elif not present and not answers and not again:
            *most, last = (repr(kind.command) for kind, _ in kinds)
            raise InputError(
                f"directory {str(directory)!r} holds no study; {', '.join(most)} or {last} makes "
                "one"
            )
        results = [read(directory) for read in present]
        pages = [write_directory(result, out or directory) for result in results]
        again_pages = [write_reproduction(result, out or directory) for result in again]
    for page in answers:
        typer.echo(f"written to {printable(str(page))}")
    for reproduction, page in zip(again, again_pages, strict=True):
        print_reproduction(reproduction)
        typer.echo(f"\nwritten to {printable(str(page))}")
    for result, page in zip(results, pages, strict=True):
        if isinstance(result, CliffStudy):
            print_cliff(result)
        elif isinstance(result, FaithfulnessStudy):
            print_faithfulness(result)
        elif isinstance(result, Certificate):
            print_certificate(result)
        elif isinstance(result, Comparison):
            print_comparison(result)
        elif isinstance(result, TokenBudget):
            print_budget(result)
        elif isinstance(result, ImportedStudy):
            print_imported(result)
        else:
            _print(result)
        typer.echo(f"\nwritten to {printable(str(page))}")


def _settings(
    config: Path | None, overrides: dict[str, Any], truncate: list[str], presets: list[str]
) -> dict[str, Any]:
    """Put the overrides over what the file says; truncations are added to the file's."""
    plain: dict[str, Any] = {}
    if config is not None:
        from vlmflow.studies.truncations.plan import read_plan

        plain = read_plan(config)
    plain |= {name: value for name, value in overrides.items() if value is not None}
    more = [*truncate, *({"preset": name} for name in presets)]
    if more:
        listed = plain.get("truncations") or []
        plain["truncations"] = [*listed, *more] if isinstance(listed, list) else listed
    return plain


def _print(result: StudyResult) -> None:
    from vlmflow.reports.study.sentences import headline

    typer.echo(printable(headline(result)) + "\n")
    rows: list[tuple[str, ...]] = [
        ("on the test split", "score", "difference", "same answer", "FLOPs", "prefill", "n")
    ]
    rows += [_row(summary) for summary in result.summaries if summary.split == "test"]
    for line in columns(rows, right=True, gap=3):
        typer.echo(printable(line))
    if result.failures:
        typer.echo(f"\n{len(result.failures)} samples failed under some arm; the page says why")


def _row(summary: ArmSummary) -> tuple[str, ...]:
    score, difference = summary.score, ""
    if summary.difference is not None:
        low, high = 100 * summary.difference.low, 100 * summary.difference.high
        difference = f"{100 * summary.difference.value:+.1f} ({low:+.1f} to {high:+.1f})"
    return (
        summary.arm.name,
        f"{100 * score.value:.1f} ({100 * score.low:.0f} to {100 * score.high:.0f})",
        difference,
        f"{100 * summary.agreement.value:.1f} %",
        f"{100 * summary.cost_share:.0f} %",
        "" if summary.prefill_share is None else f"{100 * summary.prefill_share:.0f} %",
        str(summary.count),
    )
