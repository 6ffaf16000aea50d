"""How long a prefill takes under every setting, measured side by side."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch

from vlmflow.studies.truncations.arms import Setting, mean_share
from vlmflow.studies.truncations.cache_keys import stored_sample
from vlmflow.studies.truncations.down_sample import down_sampled, grows
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.truncation.timing import timed_answer

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt
    from vlmflow.truncation.truncation import Truncation

REPEATS = 3


def timing_id(model: str, sample: str, setting: Setting) -> str:
    """Name the measurement of a setting on a sample.

    Parameters
    ----------
    model, sample : str
        :func:`vlmflow.studies.truncations.cache_keys.model_identity` and the id of a stored sample.
    setting : Setting
        How it is answered.
    """
    return hashlib.sha256(repr(("prefill", model, sample, setting.to_json())).encode()).hexdigest()


def time_prefills(
    vlm: LVLM,
    task: Task,
    settings: Sequence[Setting],
    samples: int,
    model: str,
    known: Collection[str] = (),
) -> Iterator[tuple[str, float]]:
    """Time the prefill of some calibration samples under every setting.

    Settings take turns, so that whatever else the machine does falls on all of them. Vision tower,
    projector, decoder and ranking are in it, as are one warm-up before each run.

    Parameters
    ----------
    vlm, task, settings
        The study.
    samples : int
        How many.
    model : str
        :func:`vlmflow.studies.truncations.cache_keys.model_identity`.
    known : collection of str
        Ids that need no measuring. A sample is measured whole or not at all: its settings are
        compared with each other.

    Yields
    ------
    id, seconds
        :func:`timing_id`, and the median of a few runs. A setting that fails yields nothing.
    """
    if samples < 1:
        return
    for sample in task.samples("calibration", samples):
        identity = stored_sample(task.name, "calibration", sample).id
        ids = [timing_id(model, identity, setting) for setting in settings]
        if set(ids) <= set(known):
            continue
        seconds: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for setting, name in zip(settings, ids, strict=True):
                try:
                    prompt, policy = _prompt(vlm, sample, setting)
                    timed = timed_answer(vlm, prompt, policy, max_new_tokens=1)
                except Exception:  # its answers tell what is wrong with the setting
                    continue
                seconds.setdefault(name, []).append(timed.prefill)
        for name, found in seconds.items():
            yield name, median(found)


def describe_machine(vlm: LVLM) -> str:
    """Say in a few words what prefills were timed on."""
    if vlm.device.type == "cuda":
        return torch.cuda.get_device_name(vlm.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _prompt(vlm: LVLM, sample: TaskSample, setting: Setting) -> tuple[Prompt, Truncation | None]:
    prompt = vlm.prepare(sample.pictures, sample.question)
    if not setting.is_down_sampled:
        return prompt, setting.truncation
    assert setting.truncation is not None
    tokens = int(prompt.layout.image_positions.size)
    share = mean_share(setting.truncation, vlm.num_layers, tokens)
    growing = grows(vlm, prompt, sample.question)
    return down_sampled(vlm, prompt, sample.question, share, growing=growing)
