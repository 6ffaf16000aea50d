"""What requests of a task really cost under a policy: caches and prefills, measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from vlmflow.errors import InputError
from vlmflow.lvlm.layout import Segment
from vlmflow.lvlm.model import LVLM
from vlmflow.tasks.base import Task
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.timing import TimedAnswer, timed_answer
from vlmflow.truncation.truncation import Truncation


@dataclass(frozen=True)
class MeasuredRequests:
    """Samples of a task, each answered by the untouched model and under a policy.

    Parameters
    ----------
    count : int
        Samples.
    image_tokens, text_tokens, answer_tokens : float
        Means, of the untouched runs.
    cache_bytes, cache_bytes_untouched : float
        Mean bytes of keys and values at an answer's end, off the cache.
    prefill, prefill_untouched : float
        Median seconds, one request at a time.
    same : int
        Answers that equal the untouched model's.
    exits : dict of int to int
        Requests by the layer at which they left; those that never left stand at the number of
        layers. Of a truncation all stand at its last layer.
    """

    count: int
    image_tokens: float
    text_tokens: float
    answer_tokens: float
    cache_bytes: float
    cache_bytes_untouched: float
    prefill: float
    prefill_untouched: float
    same: int
    exits: dict[int, int]


def measure_requests(
    vlm: LVLM,
    task: Task,
    policy: Truncation | ExitPolicy,
    samples: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredRequests:
    """Answer samples of a task's test split one at a time, untouched and under the policy in turn.

    Raises
    ------
    InputError
        If the task has no sample.
    """
    untouched: list[TimedAnswer] = []
    truncated: list[TimedAnswer] = []
    images: list[int] = []
    texts: list[int] = []
    for sample in task.samples("test", samples):
        prompt = vlm.prepare(sample.pictures, sample.question)
        images.append(len(prompt.layout.positions_of(Segment.IMAGE)))
        texts.append(prompt.inputs["input_ids"].shape[1] - images[-1])
        for way, runs in ((None, untouched), (policy, truncated)):
            runs.append(timed_answer(vlm, prompt, way, max_new_tokens=task.max_new_tokens))
        if progress is not None:
            progress(len(images), samples)
    if not images:
        raise InputError(f"task {task.name!r} has no sample in its test split to measure")
    return MeasuredRequests(
        count=len(images),
        image_tokens=fmean(images),
        text_tokens=fmean(texts),
        answer_tokens=fmean(len(run.ids) for run in untouched),
        cache_bytes=fmean(run.cache_bytes for run in truncated),
        cache_bytes_untouched=fmean(run.cache_bytes for run in untouched),
        prefill=median(run.prefill for run in truncated),
        prefill_untouched=median(run.prefill for run in untouched),
        same=sum(a.ids == b.ids for a, b in zip(untouched, truncated, strict=True)),
        exits=dict(sorted(Counter(run.exit_layer for run in truncated).items())),
    )
