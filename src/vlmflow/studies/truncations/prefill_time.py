"""How long a prefill takes under every arm, measured side by side."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch

from vlmflow.studies.samples import stored_sample
from vlmflow.studies.truncations.arms import Arm, mean_share
from vlmflow.studies.truncations.down_sample import down_sampled, grows
from vlmflow.studies.truncations.sentences import many
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.truncation.timing import timed_answer

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt
    from vlmflow.truncation.truncation import Truncation

REPEATS = 3


def timing_id(model: str, sample: str, arm: Arm) -> str:
    """Name the measurement of an arm on a stored sample, by their ids."""
    return hashlib.sha256(repr(("prefill", model, sample, arm.to_json())).encode()).hexdigest()


def time_prefills(
    vlm: LVLM,
    task: Task,
    arms: Sequence[Arm],
    samples: int,
    model: str,
    measured: Collection[str] = (),
) -> Iterator[tuple[str, float]]:
    """Time the prefill of some calibration samples under every arm.

    Arms take turns, so that whatever else the machine does falls on all of them. Vision tower,
    projector, decoder and ranking are in it, as are one warm-up before each run. Yields
    :func:`timing_id` and the median seconds of a few runs; an arm that fails yields nothing. Ids in
    ``measured`` need no measuring. A sample is measured whole or not at all: its arms are compared
    with each other.
    """
    if samples < 1:
        return
    for sample in task.samples("calibration", samples):
        identity = stored_sample(task.name, "calibration", sample).id
        ids = [timing_id(model, identity, arm) for arm in arms]
        if set(ids) <= set(measured):
            continue
        seconds: dict[str, list[float]] = {}
        for _ in range(REPEATS):
            for arm, name in zip(arms, ids, strict=True):
                try:
                    prompt, policy = _prompt(vlm, sample, arm)
                    timed = timed_answer(vlm, prompt, policy, max_new_tokens=1)
                except Exception:  # its answers tell what is wrong with the arm
                    continue
                seconds.setdefault(name, []).append(timed.prefill)
        for name, runs in seconds.items():
            yield name, median(runs)


def describe_machine(vlm: LVLM) -> str:
    """Say in a few words what prefills were timed on."""
    if vlm.device.type == "cuda":
        return torch.cuda.get_device_name(vlm.device)
    return f"{platform.machine()} CPU, {many(torch.get_num_threads(), 'thread')}"


def _prompt(vlm: LVLM, sample: TaskSample, arm: Arm) -> tuple[Prompt, Truncation | None]:
    prompt = vlm.prepare(sample.pictures, sample.question)
    if not arm.is_down_sampled:
        return prompt, arm.truncation
    assert arm.truncation is not None
    tokens = int(prompt.layout.image_positions.size)
    share = mean_share(arm.truncation, vlm.num_layers, tokens)
    growing = grows(vlm, prompt, sample.question)
    return down_sampled(vlm, prompt, sample.question, share, growing=growing)
