"""The front: what a user calls, with full signatures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch

from vlmflow.errors import InputError
from vlmflow.files import as_path
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.batch_size import Batch
from vlmflow.lvlm.chat import VisualSource, opened
from vlmflow.lvlm.loading import open_model
from vlmflow.model_api import LVLM as LVLM
from vlmflow.parameters import check_integer, given_list
from vlmflow.reports.directory import write_directory
from vlmflow.studies.cliff_layer.run import run_cliff_study
from vlmflow.studies.cliff_layer.settings import CHANGED, TOLERANCE, CliffSettings
from vlmflow.studies.cliff_layer.study import CliffStudy
from vlmflow.studies.faithfulness.run import ALL, run_faithfulness
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.studies.faithfulness.study import FaithfulnessStudy
from vlmflow.studies.truncations.arms import CONTROLS
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.results import StudyResult, read_study
from vlmflow.studies.truncations.run import Progress, run_study
from vlmflow.tasks.registry import TaskLike, address_of, as_task
from vlmflow.truncation.presets import PRESETS
from vlmflow.truncation.truncation import Truncation


def load(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> LVLM:
    """Open an LVLM and its processor.

    A bundled name or a local directory is opened without any network access.

    Parameters
    ----------
    name : str or path
        Name of a bundled model (``"scenes-llava"``), a local directory that ``from_pretrained``
        can open, or a hub id ``"owner/model"``. A bundled name wins over a directory of that name;
        write ``"./name"`` for the directory.
    device : str or torch.device, optional
        Where the model goes; a GPU if there is one, else the CPU.
    dtype : str or torch.dtype, optional
        ``"float32"``, ``torch.bfloat16``, ...; what the weights were saved in where left out.
    revision : str, optional
        Branch, tag or commit of a hub model.
    device_map : str or dict, optional
        ``"auto"`` or a map spreads the model over several devices (needs ``accelerate``); instead
        of ``device``.
    attn_implementation : str, optional
        ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...; transformers' choice where left out.
    trust_remote_code : bool
        Run Python code that the model's author ships with the weights. Only for authors you trust.

    Returns
    -------
    LVLM
        In evaluation mode.

    Raises
    ------
    ModelError
        If there is no such model or directory, it cannot be opened, or it is not an
        image-text-to-text model.
    InputError
        If the device, dtype or their combination cannot be used.
    """
    model, processor = open_model(
        name,
        device=device,
        dtype=dtype,
        revision=revision,
        device_map=device_map,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    return LVLM(model, processor, name=str(name))


def cliff_study(
    vlm: LVLM,
    task: TaskLike,
    *,
    out: str | os.PathLike[str] | None = None,
    samples: int = 200,
    calibration: int = 100,
    tolerance: float = TOLERANCE,
    changed: float = CHANGED,
    batch: Batch = "auto",
    draws: int = 2000,
    seed: int = 0,
    knockout: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CliffStudy:
    """Measure from which layer on a task's image tokens can all be removed.

    A study that was interrupted continues when it is called again with the same ``out``. A sample
    that fails (a broken picture, too little memory) is left out, with its reason in ``failures``.

    Parameters
    ----------
    vlm : LVLM
        The model.
    task : str or Task
        What ``vlmflow tasks`` lists, a ``.jsonl`` or ``.csv`` file, or an object of your own.
    out : path, optional
        Directory for every measurement as it comes, the page, the figure and the tables; None:
        nothing is written.
    samples, calibration : int
        Samples of the test split, and of the calibration split, on which thresholds of the cheap
        signals are chosen.
    tolerance, changed : float
        Mean KL in nats, and share of changed answers, that removal may cost.
    batch : int or "auto"
        Samples at once, those of similar length together; "auto": as many as memory holds, which is
        estimated from a first sample (16 at most). Where memory runs out, a batch is halved.
        Numbers depend on it in their last digits, so that with another one everything is measured
        again.
    draws, seed : int
        Of the bootstraps.
    knockout : bool
        Measure an attention knockout of every test sample, too (:meth:`LVLM.attention_knockout`).
    progress : callable, optional
        Called with ``(samples done, samples in all)``.

    Raises
    ------
    InputError, ModelError
        For impossible settings, a model without knockout where one is wanted, if the model gives no
        answer to any sample, or if another process writes to ``out``.
    """
    folder = None if out is None else as_path(out)
    settings = CliffSettings(samples, calibration, tolerance, changed, batch, draws, seed, knockout)
    study = run_cliff_study(vlm, as_task(task), settings, folder, progress=progress)
    if folder is not None:
        write_directory(study, folder)
    return study


def faithfulness(
    vlm: LVLM,
    task: TaskLike,
    signals: str | Iterable[str | Signal] = ALL,
    *,
    out: str | os.PathLike[str] | None = None,
    samples: int = 100,
    calibration: int = 20,
    combine: bool = False,
    protocol: str = "vlmflow",
    replacements: Sequence[str] | None = None,
    steps: int | None = None,
    layers: Sequence[int] | None = None,
    sanity: int = 4,
    timed: int = 2,
    batch: Batch = "auto",
    low_memory: bool = False,
    draws: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FaithfulnessStudy:
    """Compare how far maps can be trusted over a task, beside controls that know nothing.

    Pictures appear and vanish in the order of every map; the model's own greedy answer is fixed and
    scored. The layer of each signal is chosen on the calibration split and reported on the test
    split. A study that was interrupted continues when it is called again with the same ``out``. A
    sample that fails (a broken picture, too little memory) is left out, with its reason in
    ``failures``.

    Parameters
    ----------
    vlm : LVLM
        The model.
    task : str or Task
        What ``vlmflow tasks`` lists, a ``.jsonl`` or ``.csv`` file, or an object of your own.
    signals : "all", or iterable of str or Signal
        The maps, as for :meth:`LVLM.explain`.
    out : path, optional
        Directory for every measurement as it comes, the page, the figures and the tables; None:
        nothing is written.
    samples, calibration : int
        Samples of the test split, and of the calibration split, on which layers are chosen.
    combine : bool
        Also try combinations of the best maps on the calibration split (pairs, and sums over the
        first layers), and report the best one, as a signal of its own.
    protocol : str
        ``"vlmflow"`` (black and removal of tokens, 16 steps) or ``"eagle"`` (black, 64 regions, one
        per step; arXiv 2509.22496), which fixes the next two.
    replacements : sequence of str, optional
        What stands where the picture is not shown: ``"black"``, ``"blur"``, ``"mean"`` colour;
        ``"tokens"``: its image tokens are removed. The first one chooses the layers.
    steps : int, optional
        Equally large steps of a curve.
    layers : sequence of int, optional
        Layers that are tried; left out: every layer up to 12, else 8 evenly spaced. A single one
        leaves nothing to choose, and needs no calibration.
    sanity : int
        Test samples whose maps are compared with those of drawn weights.
    timed : int
        Test samples on which each signal's cost is measured.
    batch : int or "auto"
        Pictures, or subsets of tokens, to a forward pass; "auto": as many as memory holds, which is
        estimated from a first pass (16 at most). Where memory runs out, it is halved. Numbers
        depend on it in their last digits, so that with another one everything is measured again.
    low_memory : bool
        Recompute layers in backward passes instead of keeping their activations.
    draws, seed : int
        Of the bootstraps; the seed also of random maps and drawn weights.
    progress : callable, optional
        Called with ``(measurements done, measurements in all)``.

    Raises
    ------
    InputError, ModelError
        For impossible settings, if no sample could be measured, or if another process writes to
        ``out``.
    """
    folder = None if out is None else as_path(out)
    settings = FaithfulnessSettings(
        samples=samples,
        calibration=calibration,
        combine=combine,
        protocol=protocol,
        replacements=given_list("replacements", replacements),
        steps=steps,
        layers=given_list("layers", layers),
        sanity=sanity,
        timed=timed,
        batch=batch,
        low_memory=low_memory,
        draws=draws,
        seed=seed,
    )
    result = run_faithfulness(vlm, as_task(task), signals, settings, folder, progress=progress)
    if folder is not None:
        write_directory(result, folder)
    return result


def study(
    vlm: LVLM,
    task: TaskLike,
    truncations: Iterable[str | Truncation],
    *,
    out: str | os.PathLike[str],
    samples: int = 200,
    calibration: int = 200,
    max_loss: float = 0.03,
    timed: int = 4,
    seed: int = 0,
    controls: Iterable[str] = CONTROLS,
    max_new_tokens: int | None = None,
    batch: Batch = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> StudyResult:
    """Compare truncations over a task, beside their controls, and recommend one or none.

    A study that was interrupted continues when it is called again with the same ``out``. Page,
    figures and tables are written beside its store.

    Parameters
    ----------
    vlm : LVLM
        The model.
    task : str or Task
        What ``vlmflow tasks`` lists, a ``.jsonl`` or ``.csv`` file, or an object of your own.
    truncations : iterable of str or Truncation
        Names of presets, settings as the command line takes them (``"layer=6,keep=0"``), or
        truncations.
    out : path
        Directory of the study.
    samples, calibration : int
        Samples of the test split, and of the calibration split, on which a truncation is chosen.
    max_loss : float
        Largest loss of the task's score that a recommendation may cost.
    timed : int
        Calibration samples whose prefill is timed under every arm; 0: none.
    seed : int
        Of random choices and bootstraps.
    controls : iterable of str
        What every truncation is held against beside the untouched model and no image: ``"random"``
        tokens on its schedule, ``"down-sampled"`` pictures of as many tokens. Each is one more
        answer per sample and truncation.
    max_new_tokens : int, optional
        Longest answer; the task's own where left out.
    batch : int or "auto"
        Samples at once. ``"auto"``: as many as memory holds, by an estimate from the first sample,
        and halved where memory runs out all the same. In float32 it changes no answer beyond
        rounding.
    progress : callable, optional
        Called after every batch of samples.

    Raises
    ------
    InputError, ModelError
        For impossible settings, or if another process writes to ``out``.
    """
    folder = as_path(out)
    data = as_task(task)
    plan = Plan(
        task=address_of(data),
        model=vlm.name,
        truncations=tuple(
            {"preset": setting} if isinstance(setting, str) and setting in PRESETS else setting
            for setting in truncations
        ),
        samples=samples,
        calibration=calibration,
        max_loss=max_loss,
        timed=timed,
        seed=seed,
        controls=tuple(controls),
        max_new_tokens=max_new_tokens,
        batch=batch,
    )
    run_study(plan, folder, vlm=vlm, task=data, progress=progress)
    result = read_study(folder, data)
    write_directory(result, folder)
    return result


def sample(task: TaskLike, index: int = 0, *, split: str = "test") -> tuple[VisualSource, str]:
    """Return the first picture or video and the question of one sample of a task.

    Parameters
    ----------
    task : str or Task
        What ``vlmflow tasks`` lists, a ``.jsonl`` or ``.csv`` file, or an object of your own.
    index : int
        Which sample, counted from 0; the same one every time.
    split : str
        ``"calibration"`` or ``"test"``.

    Raises
    ------
    InputError
        If there is no such task, split or sample.
    """
    check_integer("index", index)
    data = as_task(task)
    chosen = next(islice(data.samples(split, index + 1), index, None), None)
    if chosen is None:
        raise InputError(f"index={index}, but the {split} split of {data.name} has fewer samples")
    return opened(chosen.pictures[0]), chosen.question
