"""The front of certificates: what a user calls for a truncation with a promise."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vlmflow.errors import InputError
from vlmflow.files import as_path
from vlmflow.lvlm.identity import weights_digest
from vlmflow.lvlm.model import LVLM
from vlmflow.reports.directory import write_directory
from vlmflow.studies.certification.certificate import Certificate
from vlmflow.studies.certification.paths import PROBE
from vlmflow.studies.certification.run import all_signals, run_certify
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.tasks.registry import TaskLike, as_task
from vlmflow.truncation.exit_signals.probe import Probe
from vlmflow.truncation.exit_signals.registry import as_exit_signal
from vlmflow.truncation.exit_signals.signal import ExitSignal

ALL = "all"


def certify(
    vlm: LVLM,
    task: TaskLike,
    *,
    out: str | os.PathLike[str],
    settings: CertifySettings | None = None,
    risk: float | None = None,
    confidence: float | None = None,
    signals: str | Iterable[str | ExitSignal] = ALL,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Find an exit policy whose risk is promised: ``P(risk <= eps) >= confidence``.

    Policies are fitted on one part of the calibration split and tested on the other, one after the
    other from safe to aggressive; the last that passes is run on the test split. A run that was
    interrupted continues when it is called again with the same ``out``.

    Parameters
    ----------
    vlm : LVLM
        The model.
    task : str or Task
        What ``vlmflow tasks`` lists, names joined by ``+`` for a mixture, a ``.jsonl`` or ``.csv``
        file, or an object of your own.
    out : path
        File of the policy, ``policy.json``. A directory of the same name without ``.json`` holds
        measurements, page, figure and tables. Without a certified policy no file is written, and
        one that is there from before goes.
    settings : CertifySettings, optional
        Everything that is asked for.
    risk, confidence : float, optional
        Shorter than whole settings: share of answers that may change, and how sure it has to be.
    signals : "all" or iterable of str or ExitSignal
        Exit signals to choose from, beside a probe that is fitted.
    progress : callable, optional
        Called with ``(samples done, samples in all)``.

    Raises
    ------
    InputError, ModelError
        For impossible settings, a promise that so few samples cannot bear, or if no sample could be
        measured.
    """
    file = as_path(out)
    if file.suffix != ".json":
        raise InputError(f"out={str(file)!r} is the policy's file; end it in .json")
    given = settings or CertifySettings()
    if risk is not None or confidence is not None:
        given = replace(
            given,
            risk=given.risk if risk is None else risk,
            confidence=given.confidence if confidence is None else confidence,
        )
    directory = file.with_suffix("")
    named = exit_signals(signals)
    data = as_task(task)
    certificate = run_certify(vlm, data, named, given, directory, progress=progress)
    if certificate.policy is not None:
        promise = _certificate(vlm, certificate, data.max_new_tokens)
        certificate = replace(certificate, policy=replace(certificate.policy, certificate=promise))
    write_directory(certificate, directory)
    _write_policy(certificate, file)
    return certificate


def exit_signals(given: str | Iterable[str | ExitSignal]) -> dict[str, ExitSignal]:
    """Return exit signals by name; ``"all"``: every bundled one.

    The probe is left out: it is fitted, and always among those to choose from.

    Raises
    ------
    InputError
        For one that cannot be found, that is there twice, or that is called as the probe is.
    """
    if given == ALL:
        return all_signals()
    listed: Sequence[object] = [given] if isinstance(given, str) else list(given)
    named: dict[str, ExitSignal] = {}
    for one in listed:
        signal = as_exit_signal(one)
        if isinstance(signal, Probe):
            if signal.weights:
                raise InputError(
                    "a probe is fitted anew by certifying; leave its weights out, it is always "
                    "among the signals to choose from"
                )
            continue
        if signal.known_as() == PROBE:
            raise InputError(
                f"exit signal {PROBE!r} is what certifying fits; give yours another name in its "
                "class (name = '...')"
            )
        if signal.title in named:
            raise InputError(f"exit signal {signal.title!r} is there twice")
        named[signal.title] = signal
    return named


def _certificate(vlm: LVLM, certificate: Certificate, max_new_tokens: int) -> dict[str, object]:
    """Return what the policy's file says of its promise and of the model that it is about."""
    template = str(getattr(vlm.processor, "chat_template", None))
    settings = certificate.settings
    assert certificate.policy is not None
    return {
        "task": certificate.task,
        "model": {name: certificate.model[name] for name in ("name", "class", "dtype", "layers")},
        "weights": weights_digest(vlm.model),
        "code": certificate.policy.code(),
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "risk": settings.risk,
        "loss": settings.loss,
        "confidence": settings.confidence,
        "p_value": certificate.p_value,
        "fitted": certificate.fitted,
        "tested": certificate.tested,
        "seed": settings.seed,
        "versions": certificate.versions,
    }


def _write_policy(certificate: Certificate, file: Path) -> None:
    if certificate.policy is not None:
        certificate.policy.save(file)
    else:  # an older promise is not this one's
        file.unlink(missing_ok=True)
