"""``vlmflow export-policy``: what a truncation or a policy means to a server."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmflow import __version__
from vlmflow.cli import options
from vlmflow.cli.app import MODEL, app
from vlmflow.cli.terminal import (
    check_range,
    columns,
    errors_in_one_line,
    notes,
    printable,
    progress,
    quiet_libraries,
)
from vlmflow.errors import InputError

if TYPE_CHECKING:
    from vlmflow.serving.estimate import ServedRequest
    from vlmflow.serving.measure import MeasuredRequests

MIB = 2**20


@app.command(name="export-policy")
def export_policy(
    model: options.Model = MODEL,
    policy_file: options.PolicyFile = None,
    truncate: options.TruncateSettings = None,
    preset: options.PresetName = None,
    image_tokens: Annotated[int, typer.Option(help="Image tokens of a typical prompt.")] = 576,
    text_tokens: Annotated[int, typer.Option(help="All its other tokens.")] = 60,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of a typical answer.")] = 100,
    memory: Annotated[float, typer.Option(help="The accelerator's memory, in GB.")] = 24.0,
    task: Annotated[
        str | None,
        typer.Option(
            help="Measure samples of this task, too: caches, prefills, where requests leave.",
            show_default="the config alone is read, no weights",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the task.")] = 20,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what removal means to a server: cache, requests at once, prefill.

    Computed from the model's config for a typical prompt; with --task also measured.
    """
    with errors_in_one_line():
        check_range("--samples", samples, 1)
        check_range("--image-tokens", image_tokens, 1)
        check_range("--text-tokens", text_tokens, 1)
        check_range("--answer-tokens", answer_tokens, 1)
        with progress() as show:
            show("Reading the config")
            quiet_libraries()
            import torch

            from vlmflow.lvlm.skeleton import open_skeleton
            from vlmflow.serving import estimate
            from vlmflow.tasks.registry import as_task

            way = options.one_way(truncate, preset, policy_file)
            if way is None:
                raise InputError(
                    "nothing is removed; give --policy, --truncate or --preset, for example "
                    "--truncate layer=6,keep=0"
                )
            request = estimate.Request(text_tokens, image_tokens, answer_tokens)
            budget = estimate.gigabytes(memory)
            data = None if task is None else as_task(task)
            skeleton, layers = open_skeleton(model, revision=revision)
            removal = way(len(layers))
            own = str(skeleton.dtype).removeprefix("torch.")
            name = own if dtype is None or dtype.value == "auto" else dtype.value
            size = torch.finfo(getattr(torch, name)).bits // 8
            rows = estimate.served_requests(skeleton, layers, removal, request, size)
            weights = estimate.weight_bytes(skeleton, size)
            measured = None
            if data is not None:
                show(f"Loading {model}")
                import vlmflow
                from vlmflow.serving.measure import measure_requests

                with notes():
                    vlm = vlmflow.load(
                        model, device=device, dtype=dtype and dtype.value, revision=revision
                    )
                    measured = measure_requests(
                        vlm, data, removal, samples,
                        progress=lambda done, total: show("Measuring", done, total),
                    )  # fmt: skip
    facts: dict[str, Any] = {
        "version": __version__,
        "model": model,
        "dtype": name,
        "policy": removal.to_json(),
        "request": asdict(request),
        "memory": budget,
        "weights_bytes": weights,
        "requests": [
            asdict(row)
            | {
                "cache_bytes": row.cache_bytes,
                "at_once": estimate.concurrent(budget, weights, row.cache_bytes),
            }
            for row in rows
        ],
        "measured": measured and {"task": task, **asdict(measured)},
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f"{printable(model)}, {len(layers)} layers, weights {weights / 1e9:.2f} GB in {name}; a "
        f"request of {request.image} image and {request.text} other tokens, "
        f"{request.answer} answered\n"
    )
    _print_rows(rows, budget, weights)
    if measured is not None:
        _print_measured(measured, len(layers))


def _print_rows(rows: tuple[ServedRequest, ...], budget: float, weights: int) -> None:
    from vlmflow.serving.estimate import USABLE, concurrent

    whole = rows[0].cache_bytes
    head = ("computed", "prompt tokens in a layer", "cache", "of it", "at once", "decoder prefill")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        least, most = min(row.prompt_tokens), max(row.prompt_tokens)
        lines.append(
            (
                row.name,
                str(most) if least == most else f"{most} to {least}",
                f"{row.cache_bytes / MIB:.1f} MiB",
                f"{row.cache_bytes / whole:.0%}",
                f"{concurrent(budget, weights, row.cache_bytes):,}",
                f"{row.decoder_share:.0%}",
            )
        )
    for line in columns(lines, right=True, gap=3):
        typer.echo(line)
    typer.echo(f"\nat once: in {USABLE:.0%} of {budget / 1e9:g} GB beside the weights")


def _print_measured(measured: MeasuredRequests, depth: int) -> None:
    saved = 1 - measured.cache_bytes / measured.cache_bytes_untouched
    typer.echo(
        f"\nmeasured on {measured.count} samples ({measured.image_tokens:.0f} image, "
        f"{measured.text_tokens:.0f} other tokens, answers of {measured.answer_tokens:.1f}):\n"
        f"cache       {measured.cache_bytes / MIB:.2f} MiB a request instead of "
        f"{measured.cache_bytes_untouched / MIB:.2f} ({saved:.0%} less)\n"
        f"prefill     {1000 * measured.prefill:.1f} ms instead of "
        f"{1000 * measured.prefill_untouched:.1f}, one request at a time\n"
        f"answers     {measured.same} of {measured.count} as the untouched model's"
    )
    left = ", ".join(
        f"{count} at layer {layer}" if layer < depth else f"{count} never"
        for layer, count in measured.exits.items()
    )
    typer.echo(f"left        {left}")
