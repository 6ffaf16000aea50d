"""Running a study of faithfulness: layers chosen, frozen, and reported on other samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.lvlm.model import LVLM
from vlmflow.result.map_info import MapInfo
from vlmflow.studies.faithfulness.choice import Tried, layers_chosen
from vlmflow.studies.faithfulness.combinations import (
    best_of,
    candidates,
    chosen_layers,
    combinations_tried,
    singles,
)
from vlmflow.studies.faithfulness.maps import check_names, searched_by_removal
from vlmflow.studies.faithfulness.samples import Kept, Measuring
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.studies.faithfulness.store import FAITHFULNESS, StoredRecord
from vlmflow.studies.faithfulness.study import FaithfulnessStudy, faithfulness_study_of
from vlmflow.studies.samples import StoredSample, model_identity, task_sample
from vlmflow.studies.store import Store, writing
from vlmflow.tasks.base import Task
from vlmflow.tasks.registry import address_of, find_task
from vlmflow.trust.randomised import STAGES, randomised

ALL = "all"


def chosen_signals(given: str | Iterable[str | Signal]) -> dict[str, Signal]:
    """Return signals by the names of their maps; ``"all"``: every one there is.

    Raises
    ------
    InputError
        For one that cannot be found, or is called like a control.
    """
    signals = ExplainOptions(signals=list(SIGNALS.names()) if given == ALL else given).named
    check_names(signals)
    return signals


def run_faithfulness(
    vlm: LVLM,
    task: Task,
    signals: str | Iterable[str | Signal],
    settings: FaithfulnessSettings,
    directory: Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> FaithfulnessStudy:
    """Run a study, or what its directory lacks of it; see :func:`vlmflow.faithfulness`.

    Without a directory nothing is stored. ``progress`` is called after every measurement.

    Raises
    ------
    InputError
        For impossible settings, if no sample could be measured, another process writes there, or
        the store cannot be used.
    """
    check_untruncated(vlm.model, "a study of faithfulness")
    named = chosen_signals(signals)
    ExplainOptions(signals=list(named.values())).check_model(vlm.decoder_layers)
    layers = settings.layers_of(vlm.num_layers)
    done, total = 0, _measurements(settings)

    def show() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with nullcontext() if directory is None else writing(directory, FAITHFULNESS) as store:
        if store is not None:
            store.write("study", None)  # what is there belongs to another run
        measuring = Measuring(vlm, task, named, settings, identity=model_identity(vlm), store=store)
        about = _about(measuring)
        tried = {name: (None,) if about[name].summed else layers for name in named}
        needed = tried if settings.combine else _open(tried)
        if not needed:
            total -= settings.calibration
        calibration = _calibrated(measuring, needed, show)
        frozen = chosen_layers(layers_chosen(tried, _differences(calibration), settings))
        combined: dict[str, Any] | None = None
        searched: list[Kept] = []
        if settings.combine:
            combined, signal, searched = _combined(measuring, tried, frozen, calibration, show)
            named = ExplainOptions(signals=[*named.values(), signal]).named
            name = next(name for name, one in named.items() if one == signal)
            tried, frozen = {**tried, name: (None,)}, {**frozen, name: None}
            measuring = measuring.of(named)
            about, combined["name"] = _about(measuring), name
        tested = []
        for kept in measuring.maps("test", task.samples("test", settings.samples), frozen):
            tested.append(kept)
            show()
        _require("test", tested, task)
        answered = [kept for kept in tested if kept.record.arrays is not None]
        drawn = _drawn(measuring, answered[: settings.sanity], frozen, show)
        timed = []
        for kept in answered[: settings.timed]:
            timed.append(measuring.cost("test", kept.sample))
            show()
        record = {
            "task": address_of(task),
            "model": vlm.config_summary(),
            "settings": asdict(settings),
            "about": {name: info.to_json() for name, info in about.items()},
            "in_sample": [name for name, one in named.items() if searched_by_removal(one)],
            "tried": {name: list(own) for name, own in tried.items()},
            "combined": combined,
            "calibration": [kept.ids for kept in calibration],
            "test": [kept.ids for kept in tested],
            "drawn": {stage: [kept.ids for kept in own] for stage, own in drawn.items()},
            "timed": [kept.ids for kept in timed],
        }
        if store is not None:
            store.write("study", record)
    kept_rows = [
        *calibration,
        *searched,
        *tested,
        *(kept for own in drawn.values() for kept in own),
        *timed,
    ]
    return faithfulness_study_of(
        task,
        json.loads(json.dumps(record)),
        {kept.stored.id: kept.sample for kept in kept_rows},
        {kept.record.id: kept.record for kept in kept_rows},
    )


def read_faithfulness(directory: Path, task: Task | None = None) -> FaithfulnessStudy:
    """Read a finished study from its directory; its samples have no pictures.

    The task is given where its name cannot be looked up (a class of a notebook).

    Raises
    ------
    InputError
        If there is none, it is not finished, or its file is damaged.
    """
    store = Store(directory, FAITHFULNESS)
    try:
        record = store.record()
        pairs = [*record["calibration"], *record["test"], *record["timed"]]
        pairs += [pair for own in record["drawn"].values() for pair in own]
        pairs += (record.get("combined") or {"searched": []})["searched"]
        samples = store.get_all(StoredSample, [sample for sample, _ in pairs])
        rows = store.get_all(StoredRecord, [name for _, name in pairs])
    finally:
        store.close()
    by_id = {name: task_sample(stored) for name, stored in samples.items()}
    return faithfulness_study_of(task or find_task(record["task"]), record, by_id, rows)


def _about(measuring: Measuring) -> dict[str, MapInfo]:
    """Learn what the signals' maps are from the first sample that can be explained."""
    task, reason = measuring.task, "it has no samples"
    for split in ("calibration", "test"):
        for sample in task.samples(split, 8):
            record = measuring.about(split, sample).record
            if record.plain is not None:
                infos = json.loads(record.plain)
                return {name: MapInfo.from_json(info) for name, info in infos.items()}
            reason = f"{sample.key}: {record.failure or 'the model ends its answer at once'}"
    raise InputError(f"no sample of {task.name} could be explained; the last, {reason}")


def _measurements(settings: FaithfulnessSettings) -> int:
    """Count what there is to measure, where no sample fails."""
    sanity, timed = (min(count, settings.samples) for count in (settings.sanity, settings.timed))
    calibration = settings.calibration * (1 + settings.combine)
    return calibration + settings.samples + len(STAGES) * sanity + timed


def _open(tried: Mapping[str, Sequence[int | None]]) -> dict[str, Sequence[int | None]]:
    """Return the signals whose layer is still to be chosen."""
    return {name: layers for name, layers in tried.items() if len(layers) > 1}


def _calibrated(
    measuring: Measuring, needed: Mapping[str, Sequence[int | None]], show: Callable[[], None]
) -> list[Kept]:
    """Measure maps, at the layers that are tried, on the calibration samples."""
    settings = measuring.settings
    if not needed:
        return []
    if not settings.calibration:
        raise InputError(
            f"calibration=0, but the layer of {', '.join(needed)} has to be chosen on "
            "calibration samples; give some, or name one layer"
        )
    calibrated = []
    samples = measuring.task.samples("calibration", settings.calibration)
    for kept in measuring.layers("calibration", samples, needed):
        calibrated.append(kept)
        show()
    _require("calibration", calibrated, measuring.task)
    return calibrated


def _combined(
    measuring: Measuring,
    tried: Mapping[str, Sequence[int | None]],
    frozen: Mapping[str, int | None],
    calibration: Sequence[Kept],
    show: Callable[[], None],
) -> tuple[dict[str, Any], Signal, list[Kept]]:
    """Try combinations on the calibration samples; what a record holds of it, and the best."""
    measured = _differences(calibration)
    pool = candidates(measuring.signals, tried, frozen, measured)
    if not pool:
        raise InputError(
            "combine=True, but the signals leave nothing to combine; name two or more that are "
            "measured in one pass, or one with a map per layer"
        )
    searched = _calibrated(measuring.of(pool), dict.fromkeys(pool, (None,)), show)
    parts = singles(measuring.signals, frozen)
    titles = {name: signal.title for name, signal in pool.items()}
    rows = combinations_tried(
        parts, titles, tried, measured, _differences(searched), measuring.settings
    )
    best = best_of(rows, single=False)
    record = {"parts": parts, "titles": titles, "searched": [kept.ids for kept in searched]}
    return record, next(one for one in pool.values() if one.title == best), searched


def _differences(calibration: Sequence[Kept]) -> list[Tried]:
    return [
        Tried(kept.sample.cluster, json.loads(kept.record.plain))
        for kept in calibration
        if kept.record.plain is not None
    ]


def _require(split: str, measured: Sequence[Kept], task: Task) -> None:
    """Refuse a split of which nothing could be measured."""
    if any(kept.record.plain is not None for kept in measured):
        return
    if not measured:
        raise InputError(f"the {split} split of {task.name} has no samples")
    first = next((kept for kept in measured if kept.record.failure is not None), None)
    if first is None:
        raise InputError(f"the model gives no answer to any {split} sample of {task.name}")
    raise InputError(
        f"no {split} sample of {task.name} could be measured; the first, {first.sample.key}: "
        f"{first.record.failure}"
    )


def _drawn(
    measuring: Measuring,
    answered: Sequence[Kept],
    layers: Mapping[str, int | None],
    show: Callable[[], None],
) -> dict[str, list[Kept]]:
    """Measure maps under drawn weights; weights are drawn where something is left to measure."""
    drawn: dict[str, list[Kept]] = {}
    for stage in STAGES if answered else ():
        stored = all(measuring.has_drawn(kept, layers, stage) for kept in answered)
        seed = measuring.settings.seed
        with nullcontext() if stored else randomised(measuring.vlm, stage, seed):
            drawn[stage] = []
            for kept in answered:
                drawn[stage].append(measuring.drawn(kept, layers, stage))
                show()
    return drawn
