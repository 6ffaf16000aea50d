"""Several tasks as one: their samples take turns, and each is scored by its own task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vlmflow.errors import InputError
from vlmflow.tasks.base import Task, TaskSample

PLUS, BETWEEN = "+", "/"


class Mixture(Task):
    """A mixture of tasks in equal parts, ``"scenes-reading+scenes-existence"`` by name.

    A sample's group is the task that it comes from; what group it has there, its score cannot see.

    Parameters
    ----------
    tasks : sequence of Task
        At least two, whose answers can be scored one by one.
    name : str
        What it is called; empty: the names of the tasks, joined.

    Raises
    ------
    InputError
        For fewer, for one that is there twice, or for one that scores a whole corpus.
    """

    metric = "score"

    def __init__(self, tasks: Sequence[Task], name: str = "") -> None:
        self.tasks = {task.name: task for task in tasks}
        if len(self.tasks) < max(2, len(tasks)):
            raise InputError("a mixture is of two different tasks or more")
        for task in tasks:
            if not task.by_itself:
                raise InputError(
                    f"{task.name} scores all answers together ({task.metric}): it cannot be part "
                    "of a mixture"
                )
        self.named, self.name = name, name or PLUS.join(self.tasks)
        self.max_new_tokens = max(task.max_new_tokens for task in tasks)

    @property
    def address(self) -> str:
        """The addresses of all, see :attr:`vlmflow.tasks.base.Task.address`."""
        return self.named or PLUS.join(task.address for task in self.tasks.values())

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Give samples in turns; see :meth:`vlmflow.tasks.base.Task.samples`."""
        each = None if count is None else -(-count // len(self.tasks))
        streams = [self._marked(name, split, each) for name in self.tasks]
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*streams))
        given = (sample for sample in rounds if sample is not None)
        return itertools.islice(given, count)

    def _marked(self, name: str, split: str, count: int | None) -> Iterator[TaskSample]:
        for sample in self.tasks[name].samples(split, count):
            cluster = sample.cluster and f"{name}{BETWEEN}{sample.cluster}"
            yield replace(sample, key=f"{name}{BETWEEN}{sample.key}", group=name, cluster=cluster)

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by the sample's own task; see :meth:`vlmflow.tasks.base.Task.score`."""
        # The group is the task's name, which may hold a slash itself.
        begins = f"{sample.group}{BETWEEN}"
        own = replace(
            sample,
            key=sample.key.removeprefix(begins),
            cluster=sample.cluster.removeprefix(begins),
        )
        return self.tasks[sample.group].score(own, answer)
