"""``vlmflow generate IMAGE QUESTION``: answer with fewer image tokens, and say what that cost."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Annotated, Any

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
from vlmflow.errors import InputError

MIB = 2**20


@app.command()
def generate(
    image: options.Picture,
    question: options.Question,
    model: options.Model = MODEL,
    more_images: options.MorePictures = None,
    frames: options.VideoFrames = None,
    truncate: options.TruncateSettings = None,
    preset: options.PresetName = None,
    policy_file: options.PolicyFile = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run the untouched model as well.")
    ] = False,
    max_new_tokens: options.MaxNewTokens = 64,
    device: options.Device = None,
    dtype: options.NumberFormat = None,
    revision: options.Revision = None,
    as_json: options.AsJson = False,
) -> None:
    """Answer with image tokens removed, and print tokens per layer, FLOPs and times.

    Without --truncate, --preset or --policy the untouched model answers.
    """
    with errors_in_one_line():
        check_text("the question", question)
        check_range("--max-new-tokens", max_new_tokens, 1)
        way = options.one_way(truncate, preset, policy_file)
        if compare and way is None:
            raise InputError(
                "--compare has nothing to compare; add --truncate, --preset or --policy"
            )
        pictures = options.open_visuals((image, *(more_images or ())), frames)
        with progress() as show:
            show(f"Loading {model}")
            quiet_libraries()
            import vlmflow
            from vlmflow.truncation.answer_facts import answer_facts, compared

            vlm = vlmflow.load(model, device=device, dtype=dtype and dtype.value, revision=revision)
            policy = None if way is None else way(vlm.num_layers)
            prompt = vlm.prepare(pictures, question)
            show("Answering")
            facts = answer_facts(vlm, prompt, policy, max_new_tokens=max_new_tokens)
            if compare:
                show("Answering with the untouched model")
                untouched = answer_facts(vlm, prompt, None, max_new_tokens=max_new_tokens)
                facts |= {"untouched": untouched, "compared": compared(facts, untouched)}
    if as_json:
        typer.echo(json.dumps({"version": __version__, "model": vlm.name, **facts}))
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    _print_run(facts)
    if "untouched" not in facts:
        return
    typer.echo("untouched")
    _print_run(facts["untouched"], indent="  ")
    ratios = {name: value for name, value in facts["compared"]["ratios"].items() if value}
    names = {"prefill": "prefill", "per_token": "per token", "end_to_end": "end to end"}
    times = ", ".join(
        f"{text} {_slower(ratios[key])}" for key, text in names.items() if key in ratios
    )
    agrees = "the same answer" if facts["compared"]["same_answer"] else "ANOTHER answer"
    typer.echo(f"compared    {agrees}; {times}; cache {ratios['cache_bytes']:.0%} of the size")


def _slower(ratio: float) -> str:
    """Say how the truncated run compares: ``"1.53 times as slow"``, ``"2.00 times as fast"``."""
    return f"{ratio:.2f} times as slow" if ratio > 1 else f"{1 / ratio:.2f} times as fast"


def _print_run(facts: dict[str, Any], indent: str = "") -> None:
    typer.echo(f"{indent}answer      {printable(facts['answer'])!r}")
    if "policy" in facts:
        layers = len(facts["cached_tokens"])
        left = facts["exit_layer"]
        where = f"left at layer {left} of {layers}" if left < layers else "kept all image tokens"
        typer.echo(f"{indent}exit        {where}")
    typer.echo(f"{indent}tokens      {_spans(facts['cached_tokens'])}, counted in the cache")
    if "flops" in facts:
        flops = facts["flops"]
        # What the config does not say is not computed.
        exact = "" if flops["decoder_share"] is None else f", {flops['decoder_share']:.1%} exact"
        computed = flops["prefill_share"]
        typer.echo(
            f"{indent}FLOPs       decoder {flops['formula_share']:.1%} by FastV's formula{exact}; "
            f"whole prefill{'' if computed is None else f' {computed:.1%} computed,'} "
            f"{flops['measured_share']:.1%} measured"
        )
    further = "" if facts["per_token"] is None else f", per token {facts['per_token']:.4f} s"
    typer.echo(
        f"{indent}time        prefill {facts['prefill']:.4f} s{further}, "
        f"end to end {facts['end_to_end']:.4f} s"
    )
    typer.echo(f"{indent}cache       {facts['cache_bytes'] / MIB:.2f} MiB")


def _spans(tokens: list[int]) -> str:
    """``"163 in layers 0-5, 19 in layers 6-11"``."""
    spans, start = [], 0
    for count, group in groupby(tokens):
        end = start + len(list(group)) - 1
        layers = f"layers {start}-{end}" if end > start else f"layer {start}"
        spans.append(f"{count} in {layers}")
        start = end + 1
    return ", ".join(spans)
