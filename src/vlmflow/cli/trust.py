"""``vlmflow trust IMAGE QUESTION``: test whether an answer depends on what its map points at."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated

import typer

from vlmflow import __version__
from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.terminal import (
    check_range,
    check_text,
    errors_in_one_line,
    printable,
    progress,
    quiet_libraries,
)
from vlmflow.flow.signals.registry import DEFAULT_SIGNAL


class Replacement(str, Enum):
    """What stands where the picture is not shown."""

    BLACK = "black"
    BLUR = "blur"
    MEAN = "mean"


@app.command()
def trust(
    image: options.Picture,
    question: options.Question,
    model: options.Model = MODEL,
    signal: Annotated[
        str,
        typer.Option(
            help="The map: one that 'vlmflow signals' lists, or a control instead: random, centre, "
            "uniform, edges."
        ),
    ] = DEFAULT_SIGNAL,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Its layer, counted from 0.", show_default="none, for one map of all layers"
        ),
    ] = None,
    frames: options.VideoFrames = None,
    replacement: Annotated[
        Replacement, typer.Option(help="What stands where the picture is not shown.")
    ] = Replacement.BLACK,
    target: options.TargetWords = None,
    target_tokens: options.TargetTokens = None,
    of: options.TargetOf = options.Of.ANSWER,
    steps: Annotated[int, typer.Option(help="Steps of equal area.")] = 64,
    batch: options.PicturesAtOnce = "auto",
    max_new_tokens: options.MaxNewTokens = 64,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
    as_json: options.AsJson = False,
) -> None:
    """Insert and delete the picture, or video, in the order of a map, beside eight random maps.

    Prints one sentence: whether the map ranks regions better than chance for the model's answer.
    """
    with errors_in_one_line():
        from vlmflow.trust.controls import CONTROLS

        check_text("the question", question)
        if target is not None:
            check_text("--target", target)
        check_range("--max-new-tokens", max_new_tokens, 1)
        check_range("--steps", steps, 1)
        if layer is not None:
            check_range("--layer", layer, 0)
        visuals = options.open_visuals([image], frames)
        with progress() as show:
            show(f"Loading {model}")
            quiet_libraries()
            import vlmflow
            from vlmflow.flow.options import ExplainOptions
            from vlmflow.flow.signals.registry import as_signals

            is_control = signal in CONTROLS
            # Before the model is loaded: it may refuse.
            words = options.as_target(target, target_tokens)
            wanted = ExplainOptions(
                ["attention" if is_control else signal],
                target=words,
                of=of.value,
                per_token=False,
            )
            vlm = vlmflow.load(model, device=device, dtype=dtype and dtype.value, revision=revision)
            show("Measuring")
            flow = vlm.explain(
                visuals,
                question,
                target=words,
                of=of.value,
                signals=wanted.signals,
                per_token=False,
                max_new_tokens=max_new_tokens,
                gradients=any(one.needs_gradients for one in as_signals(wanted.signals or ())),
            )
            chosen = signal if is_control else flow.signals[0]
            tested = vlm.trust(
                flow,
                chosen,
                layer,
                images=visuals,
                replacement=replacement.value,
                steps=steps,
                batch=options.as_batch(batch),
                progress=lambda done, total: show("Inserting and deleting", done, total),
            )
    if not as_json:
        answer = f"{printable(flow.answer)!r}. " if flow.words is None else ""
        typer.echo(f"{answer}{printable(str(tested))}")
        return
    insertion, deletion = tested.curves.areas
    facts = {
        "version": __version__,
        "model": flow.model,
        "question": flow.question,
        "answer": flow.answer,
        "explained": flow.subject,
        "signal": chosen,
        "layer": layer,
        "replacement": tested.replacement,
        "steps": steps,
        "insertion": insertion,
        "deletion": deletion,
        "difference": tested.difference,
        "random_limit": tested.limit,
        "random": list(tested.random),
        "insertion_curve": tested.curves.insertion.tolist(),
        "deletion_curve": tested.curves.deletion.tolist(),
    }
    typer.echo(json.dumps(facts))
