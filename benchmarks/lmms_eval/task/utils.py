"""The functions that vlmflow_scenes.yaml names: what is shown, and how an answer is scored."""

from __future__ import annotations

from functools import cache

from vlmflow.tasks.registry import find_task

TASK, COUNT = "scenes-reasoning+scenes-reading", 40


@cache
def questions():
    """The task, and its samples by their keys."""
    task = find_task(TASK)
    return task, {sample.key: sample for sample in task.samples("test", COUNT)}


def pictures(doc):
    return [doc["picture"].convert("RGB")]


def scores(doc, results):
    task, samples = questions()
    return {"accuracy": task.score(samples[doc["key"]], results[0])}
