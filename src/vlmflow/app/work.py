"""What the worker's thread does with the model: answer and explain, truncate, remove, test.

Nothing here runs before the page is there: this is where torch comes in.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import nn

import vlmflow
from vlmflow.app.exchange import Exchange
from vlmflow.app.interruptible import interruptible
from vlmflow.app.jobs import Job
from vlmflow.errors import InputError
from vlmflow.escape_invisible import shown
from vlmflow.explanation.explain import explain
from vlmflow.explanation.truncated import beside_truncated
from vlmflow.flow.options import ExplainOptions
from vlmflow.lvlm.tokens import answer_text, end_ids, until_end
from vlmflow.removal.cliff import cliff_layer, losses
from vlmflow.reports.explain.page import mounted_report
from vlmflow.studies.cliff_layer.settings import TOLERANCE
from vlmflow.truncation.answer_facts import answer_facts, compared
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.presets import PRESETS
from vlmflow.truncation.rankings.registry import DEFAULT, RANKINGS, as_ranking
from vlmflow.truncation.truncation import Truncation
from vlmflow.trust.of_explanation import EXPLAINED_STEPS
from vlmflow.trust.passes import LOW_MEMORY

TEXT_CHARACTERS = 20_000


def offers(vlm: vlmflow.LVLM) -> dict[str, Any]:
    """Say what can be chosen for a model: its layers, rankings and published methods."""
    return {
        "layers": vlm.num_layers,
        "ranking": DEFAULT,
        "rankings": [
            {"name": name, "says": says} for name, says in RANKINGS.names().items() if _fits(name)
        ],
        "presets": [
            {"name": name, "says": (inspect.getdoc(make) or "").partition("\n")[0]}
            for name, make in PRESETS.items()
        ],
    }


def _fits(name: str) -> bool:
    """Whether a ranking can be chosen by its name: not one that another package broke."""
    try:
        return not as_ranking(name).is_oracle
    except InputError:
        return False


def ask(vlm: vlmflow.LVLM, exchange: Exchange, job: Job, *, low_memory: bool) -> None:
    """Answer token by token, then measure what the answer draws on."""
    job.progress("Looking at the picture")
    with interruptible(vlm.model, job.check):
        prompt = vlm.prepare(exchange.pictures, exchange.question)
        ids, _ = vlm.generate_with(
            prompt,
            max_new_tokens=exchange.max_new_tokens,
            options={"stopping_criteria": [_Listener(vlm, len(prompt.layout), job)]},
        )
        if not ids:
            raise InputError(
                f"{vlm.name} ends its answer before the first token, so there is nothing to "
                "explain; ask something else"
            )
        job.show({"text": _text(vlm, ids)})
        options = ExplainOptions(max_new_tokens=exchange.max_new_tokens, low_memory=low_memory)

        def on_pass(done: int, total: int) -> None:
            job.progress("Measuring what the answer draws on", done, total)

        on_pass(0, 0)
        flow = explain(vlm, exchange.pictures, exchange.question, ids, options, progress=on_pass)
    settings = {
        **flow.settings,
        "answer_generated": True,
        "command": f"vlmflow app --model {vlm.name}",
    }
    exchange.answer_ids = ids
    _draw(exchange, dataclasses.replace(flow, settings=settings), job)


def truncate(vlm: vlmflow.LVLM, exchange: Exchange, wanted: Mapping[str, Any], job: Job) -> None:
    """Let the model answer with image tokens removed, and untouched, and compare."""
    job.progress("Preparing")
    policy, name = _policy(vlm, wanted)
    assert exchange.flow is not None

    def answered(what: str, removing: Truncation | ExitPolicy | None) -> dict[str, Any]:
        job.progress(what)
        return answer_facts(
            vlm,
            prompt,
            removing,
            max_new_tokens=exchange.max_new_tokens,
            on_token=lambda ids: job.progress(f"{what}: {len(ids)} tokens"),
        )

    with interruptible(vlm.model, job.check):
        prompt = vlm.prepare(exchange.pictures, exchange.question)
        facts = answered("Answering with image tokens removed", policy)
        untouched = answered("Answering untouched", None)
        with policy(vlm.model) as run:
            vlm.generate_ids(prompt, max_new_tokens=1)
    flow = beside_truncated(exchange.flow, policy, facts["answer"], run)
    exchange.truncated = {
        "name": name,
        "layers": vlm.num_layers,
        "truncated": _visible(facts),
        "untouched": _visible(untouched),
        **compared(facts, untouched),
    }
    _draw(exchange, flow, job)


def remove(vlm: vlmflow.LVLM, exchange: Exchange, job: Job) -> None:
    """Measure what removing all image tokens from each layer on does to the answer."""
    job.progress("Removing image tokens")
    decoder = {id(layer) for layer in vlm.decoder_layers}
    done, total = 0, len(decoder)

    def on_layer(layer: nn.Module) -> None:
        nonlocal done
        if id(layer) in decoder:
            done += 1
            job.progress("Removing image tokens, layer by layer", min(done, total), total)

    with interruptible(vlm.model, job.check, on_layer):
        curve = vlm.removal_curve(exchange.pictures, exchange.question, exchange.answer_ids)
    kl = losses(curve, "kl")
    exchange.removal = {
        "layers": list(curve.layers),
        "kl": _numbers(kl),
        "agreement": _numbers(curve.agreement),
        "same_answer": curve.same_answer.tolist(),
        "logprob_change": _numbers(curve.logprob_change),
        "redundancy": _numbers(curve.redundancy),
        "tolerance": TOLERANCE,
        "cliff": cliff_layer(kl, curve.layers, TOLERANCE),
        "answer_cliff": cliff_layer(losses(curve, "answer"), curve.layers, 0.0),
    }


def test(
    vlm: vlmflow.LVLM,
    exchange: Exchange,
    wanted: Mapping[str, Any],
    job: Job,
    *,
    low_memory: bool,
) -> None:
    """Insert and delete the picture in the order of one map, beside random orders."""
    job.progress("Inserting and deleting")
    assert exchange.flow is not None
    signal, layer, target = wanted.get("signal"), wanted.get("layer"), wanted.get("target")
    if not isinstance(signal, str) or type(target) is not int:
        raise InputError("a map is named by its signal, layer and answer token; choose one again")
    pictures = [picture for picture in exchange.pictures if isinstance(picture, Image)]
    if len(pictures) < len(exchange.pictures):
        raise InputError(
            "this page tests maps of pictures alone: of a video every step would show the model "
            "all frames; run 'vlmflow trust' on the file"
        )
    about = exchange.flow.map_info(signal)
    with interruptible(vlm.model, job.check):
        tested = vlm.trust(
            exchange.flow,
            signal,
            None if about.summed is not None else layer,
            target,
            images=pictures,
            steps=EXPLAINED_STEPS,
            batch=LOW_MEMORY if low_memory else "auto",
            progress=lambda done, total: job.progress("Inserting and deleting", done, total),
        )
    others = [
        other
        for other in exchange.flow.trust
        if (other.signal, other.layer, other.target) != (tested.signal, tested.layer, tested.target)
    ]
    _draw(exchange, dataclasses.replace(exchange.flow, trust=(*others, tested)), job)


class _Listener:
    """Sends the answer on after each token; a stopping criterion that stops by raising."""

    def __init__(self, vlm: vlmflow.LVLM, length: int, job: Job) -> None:
        self._vlm, self._length, self._job = vlm, length, job

    def __call__(self, input_ids: Any, _scores: Any, **_kwargs: Any) -> Any:
        self._job.check()
        ids = input_ids[0, self._length :].tolist()
        self._job.show({"text": _text(self._vlm, ids), "says": f"Answering, {len(ids)} tokens"})
        return input_ids.new_zeros(len(input_ids)).bool()


def _text(vlm: vlmflow.LVLM, ids: Sequence[int]) -> str:
    tokenizer = vlm.processor.tokenizer
    text = answer_text(tokenizer, until_end(list(ids), end_ids(vlm.model, tokenizer)))
    # A character whose bytes have not all come is not shown yet.
    return shown(text.rstrip("\ufffd"), TEXT_CHARACTERS)


def _policy(vlm: vlmflow.LVLM, wanted: Mapping[str, Any]) -> tuple[Truncation | ExitPolicy, str]:
    """Make the policy that a request asks for, and name it as the command line would."""
    makers: dict[str, Callable[[], tuple[Truncation | ExitPolicy, str]]] = {
        "settings": lambda: _settings(wanted),
        "preset": lambda: _preset(vlm, wanted),
        "policy": lambda: _certified(wanted),
    }
    how = wanted.get("how")
    make = makers.get(how) if isinstance(how, str) else None
    if make is None:
        raise InputError("nothing says how image tokens are removed; choose one of the three ways")
    policy, name = make()
    with policy(vlm.model):  # it may not fit the model, which is said in no time
        pass
    return policy, name


def _settings(wanted: Mapping[str, Any]) -> tuple[Truncation, str]:
    layer, count, share = (wanted.get(name) for name in ("layer", "count", "share"))
    ranking = wanted.get("rank_by")
    if not isinstance(ranking, str):
        raise InputError("rank_by is not the name of a ranking; choose one from the list")
    if (count is None) == (share is None):
        raise InputError("what is kept is either a number of image tokens or a share of them")
    keep = count
    if share is not None:
        if type(share) not in (int, float):
            raise InputError(f"share={shown(share, 100)!r} is not a number; give 0 to 1")
        keep = float(share)
    policy = Truncation(layer, keep, ranking)  # type: ignore[arg-type]  # it checks both
    ranked = f",rank_by={ranking}" if policy.ranks else ""
    return policy, f"layer={layer},keep={keep}{ranked}"


def _preset(vlm: vlmflow.LVLM, wanted: Mapping[str, Any]) -> tuple[Truncation, str]:
    name = wanted.get("name")
    if not isinstance(name, str):
        raise InputError("the published method has no name; choose one from the list")
    return vlmflow.preset(name, vlm.num_layers), name


def _certified(wanted: Mapping[str, Any]) -> tuple[ExitPolicy, str]:
    text, name = wanted.get("text"), wanted.get("name")
    if not isinstance(text, str) or not isinstance(name, str):
        raise InputError("the policy is no file that vlmflow certify wrote; choose one")
    named = shown(name, 200)
    return ExitPolicy.read(text, named), named


def _draw(exchange: Exchange, flow: vlmflow.InformationFlow, job: Job) -> None:
    job.progress("Drawing")
    exchange.page = mounted_report(flow, exchange.regions)
    exchange.flow = flow


def _visible(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts with the answer as text that hides nothing, in JSON's own types."""
    return {**facts, "ids": list(facts["ids"]), "answer": shown(facts["answer"], TEXT_CHARACTERS)}


def _numbers(values: Any) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in np.asarray(values)]
