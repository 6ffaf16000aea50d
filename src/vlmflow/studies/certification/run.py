"""Certifying a policy: fitted on a part of the calibration split, tested on the rest, then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import transformers

from vlmflow.errors import InputError
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.studies.certification.certificate import Certificate
from vlmflow.studies.certification.findings import Tried
from vlmflow.studies.certification.fitting import probe_weights
from vlmflow.studies.certification.independent import divided, independent_samples
from vlmflow.studies.certification.measurements import outcomes_of
from vlmflow.studies.certification.measuring import Measuring, Pairs
from vlmflow.studies.certification.outcomes import FloatArray, Outcomes
from vlmflow.studies.certification.paths import (
    CHANCES,
    PROBE,
    PolicyPath,
    Tested,
    choose_path,
    fit_path,
    pass_along,
    signal_values,
)
from vlmflow.studies.certification.rivals import (
    constant_rival,
    group_rival,
    oracle_rival,
    policy_rival,
    text_rival,
)
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.studies.certification.skills import skills
from vlmflow.studies.certification.store import CERTIFY
from vlmflow.studies.store import Store, writing
from vlmflow.tasks.base import Task
from vlmflow.tasks.registry import address_of
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.probe import Probe
from vlmflow.truncation.exit_signals.registry import EXIT_SIGNALS
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.timing import timed_answer
from vlmflow.truncation.truncation import Truncation
from vlmflow.version import __version__

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM


def run_certify(
    vlm: LVLM,
    task: Task,
    signals: Mapping[str, ExitSignal],
    settings: CertifySettings,
    directory: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Certify, or do what the directory's store lacks of it; see :func:`vlmflow.certify`.

    ``progress`` is called after every sample.

    Raises
    ------
    InputError
        For impossible settings, if no sample could be measured, another process writes there, or
        the store cannot be used.
    """
    check_untruncated(vlm.model, "a certificate")
    if settings.loss is not None and not task.by_itself:
        raise InputError(
            f"loss={settings.loss:g} is about single answers, but {task.name} scores all answers "
            f"together ({task.metric}); promise a risk instead"
        )
    layers = settings.exit_layers(vlm.num_layers)
    splits = {
        "calibration": independent_samples(
            task, "calibration", settings.calibration, settings.seed
        ),
        "test": independent_samples(task, "test", settings.samples, settings.seed),
    }
    count = len(splits["calibration"])
    if count < settings.calibration:  # a file has no more
        settings.check_bears(count, f"the {count} calibration samples that {task.name} has")
    done, total = 0, len(splits["calibration"]) + 2 * len(splits["test"])

    def show() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with writing(directory, CERTIFY) as store:
        store.write("study", None)  # what is there belongs to another run
        measuring = Measuring(vlm, task, signals, settings, layers, store)
        pairs = {split: measuring.exits(split, own, show) for split, own in splits.items()}
        for split, own in pairs.items():
            if not own:
                raise InputError(
                    f"no {split} sample of {task.name} could be measured; the first: "
                    f"{next(iter(measuring.failures), 'there is none')}"
                )
        parts = _Parts.of(task, pairs, layers, vlm.num_layers, settings)
        path, tested, values = _tested_path(parts, settings)
        policy = _policy(path, tested, parts.fitted, settings, signals)
        runs = [] if policy is None else measuring.runs(policy, pairs["test"], show)
        constant, chosen = constant_rival(parts.calibration, parts.test, settings.promise)
        promise = settings.promise
        certificate = Certificate(
            task=address_of(task),
            metric=task.metric,
            model=vlm.config_summary(),
            settings=settings,
            layers=layers,
            fitted=len(parts.fitted),
            tested=len(parts.testing),
            policy=policy,
            p_value=None if tested.accepted is None else tested.p_values[tested.accepted],
            path=_tried(path, tested, parts.testing, values[1]),
            rivals=(
                policy_rival(path, tested, values[2][path.signal], parts.test),
                constant,
                group_rival(parts.fitted, parts.testing, parts.test, path.keep, promise),
                text_rival(parts.fitted, parts.testing, parts.test, path.keep, promise),
                oracle_rival(parts.test),
            ),
            skills=tuple(skills(parts.testing, values[1], settings.seed)),
            runs=tuple(runs),
            score=_score(task, pairs["test"]),
            seconds=_seconds(vlm, pairs["test"], policy, chosen, layers, settings),
            failures=tuple(measuring.failures),
            largest_batch=measuring.largest,
            versions={
                "vlmflow": __version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
        )
        store.write("study", certificate.to_json())
    return certificate


def read_certificate(directory: Path) -> Certificate:
    """Read a finished certificate from its directory.

    Raises
    ------
    InputError
        If there is none, it is not finished, or its file is damaged.
    """
    store = Store(directory, CERTIFY)
    try:
        return Certificate.from_json(store.record())
    finally:
        store.close()


@dataclass(frozen=True, eq=False)
class _Parts:
    """Outcomes of the calibration split, its two parts, and the test split."""

    calibration: Outcomes
    fitted: Outcomes
    testing: Outcomes
    test: Outcomes

    @classmethod
    def of(
        cls,
        task: Task,
        pairs: Mapping[str, Pairs],
        layers: Sequence[int],
        depth: int,
        settings: CertifySettings,
    ) -> _Parts:
        calibration, test = (
            outcomes_of(
                task, pairs[split], layers, depth, settings.keeps, bounded=settings.loss is not None
            )
            for split in ("calibration", "test")
        )
        first, second = divided([sample for sample, _ in pairs["calibration"]])
        return cls(calibration, calibration.of(first), calibration.of(second), test)


def _tested_path(
    parts: _Parts, settings: CertifySettings
) -> tuple[PolicyPath, Tested, list[dict[str, FloatArray]]]:
    """Fix a path on the fitting part and test it; also values on fitting, testing and test part."""
    values = signal_values(parts.fitted, [parts.testing, parts.test])
    paths = [
        fit_path(parts.fitted, name, keep, table)
        for name, table in values[0].items()
        for keep in range(len(settings.keeps))
    ]
    path = choose_path(paths, parts.fitted, values[0], settings.promise)
    replayed = path.exits(values[1][path.signal])
    return path, pass_along(parts.testing, replayed, path.keep, settings.promise), values


def _policy(
    path: PolicyPath,
    tested: Tested,
    fitted: Outcomes,
    settings: CertifySettings,
    signals: Mapping[str, ExitSignal],
) -> ExitPolicy | None:
    """Make the accepted policy of the path one that runs; None where no exit was accepted."""
    if tested.accepted is None:
        return None
    thresholds = path.thresholds[tested.accepted]
    places = [place for place in range(len(fitted.layers)) if thresholds[place] < float("inf")]
    if not places:
        return None
    signal: ExitSignal
    if path.signal == PROBE:
        fits = [(place, probe_weights(fitted.states[:, place], fitted.changed[:, place, 0]))
                for place in places]  # fmt: skip
        signal = Probe(tuple(
            (fitted.layers[place], bias, tuple(weights.tolist())) for place, (weights, bias) in fits
        ))  # fmt: skip
    else:
        signal = signals[path.signal]
    keep = settings.amounts()[path.keep]
    return ExitPolicy(
        tuple(fitted.layers[place] for place in places),
        (keep,) * len(places),
        settings.rank_by,
        signal=signal,
        thresholds=tuple(float(thresholds[place]) for place in places),
    )


def _tried(
    path: PolicyPath, tested: Tested, testing: Outcomes, values: Mapping[str, FloatArray]
) -> tuple[Tried, ...]:
    accepted = -1 if tested.accepted is None else tested.accepted
    return tuple(
        Tried(
            chance=float(CHANCES[place]),
            p_value=tested.p_values[place],
            risk=float(testing.changes(exits, path.keep).mean()),
            saved=float(testing.saved(exits, path.keep).mean()),
            accepted=place <= accepted,
        )
        for place, exits in enumerate(path.exits(values[path.signal]))
    )


def _score(task: Task, pairs: Pairs) -> float | None:
    if not task.by_itself:
        return None
    scores = [task.score(sample, measured.answers[0]["text"]) for sample, measured in pairs]
    return sum(scores) / len(scores)


def _seconds(
    vlm: LVLM,
    pairs: Pairs,
    policy: ExitPolicy | None,
    constant: tuple[int, int] | None,
    layers: Sequence[int],
    settings: CertifySettings,
) -> dict[str, float]:
    """Time prefills of some test samples in turns: median seconds by what removes."""
    ways: dict[str, Any] = {"untouched": None}
    if policy is not None:
        ways["policy"] = policy
    if constant is not None:
        place, keep = constant
        ways["constant"] = Truncation(layers[place], settings.amounts()[keep], settings.rank_by)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for sample, _ in pairs[: settings.timed]:
        prompt = vlm.prepare(sample.pictures, sample.question)
        for name, way in ways.items():
            seconds[name].append(timed_answer(vlm, prompt, way, max_new_tokens=1).prefill)
    return {name: median(own) for name, own in seconds.items() if own}


def all_signals() -> dict[str, ExitSignal]:
    """Return every bundled exit signal but the probe, which is fitted."""
    return {name: EXIT_SIGNALS.read(name) for name in EXIT_SIGNALS.bundled() if name != PROBE}
