"""A data set of the hub, or a local copy in the same form, as a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from vlmflow.errors import InputError
from vlmflow.lvlm.chat import PictureSource
from vlmflow.tasks.base import Task, TaskSample, check_split
from vlmflow.tasks.hub.catalogue import CATALOGUE
from vlmflow.tasks.hub.division import is_calibration, shuffled, shuffled_together
from vlmflow.tasks.hub.opening import check_installed, check_source, open_split
from vlmflow.tasks.hub.rows import Row, Rows
from vlmflow.tasks.hub.spec import Part


class HubTask(Task):
    """One of the data sets in :data:`~vlmflow.tasks.hub.catalogue.CATALOGUE`.

    The ``test`` split is the official split that has answers. The ``calibration`` split is another
    official split where there is one with answers, less the pictures that ``test`` has too; else
    the official split is divided by a hash of the picture, a third for calibration and two thirds
    for ``test``, whose figures are then not those of a leaderboard. Both come in an order drawn
    once, so that the first ``count`` samples are like all others. A sample's key is the official
    split's name and the row's number in it.

    The first use downloads the data set's whole configuration into the hub's cache.

    Parameters
    ----------
    name : str
        Which one.
    source : str, optional
        A directory that holds the data set as the hub does, or another id of the hub.

    Raises
    ------
    InputError
        If there is none of that name, if a package (or Java, for captions) is missing, or if
        ``source`` is neither a directory nor an id.
    """

    def __init__(self, name: str, source: str | None = None) -> None:
        if name not in CATALOGUE:
            raise InputError(f"unknown data set {name!r}; there are {', '.join(CATALOGUE)}")
        check_installed(name)
        self.name = name
        self._source = source
        self.data = CATALOGUE[name]
        self.sources = self.data.hub if source is None else (source,)
        if source is not None:
            check_source(source, name)
        self.scoring = self.data.metric()
        self.metric = self.scoring.name
        self.by_itself = self.scoring.by_itself
        self.max_new_tokens = self.data.max_new_tokens
        self._opened: dict[Part, _Opened] = {}

    @property
    def address(self) -> str:
        """The name, and where the data set was taken from if that was said."""
        return self.name if self._source is None else f"{self.name}@{self._source}"

    def samples(self, split: str, count: int | None = None) -> Iterator[TaskSample]:
        """Give samples in their order; see :meth:`vlmflow.tasks.base.Task.samples`."""
        check_split(split)
        separate = self.data.calibration
        part = separate if split == "calibration" and separate else self.data.test
        opened = self._open(part)
        test_clusters: frozenset[str] = frozenset()
        if separate and part is separate:
            test_clusters = self._open(self.data.test).clusters
        yielded = 0
        for number in opened.order:
            if yielded == count:
                return
            row = opened.rows[number]
            cluster = opened.cluster(number, row)
            if cluster in test_clusters or (
                separate is None and is_calibration(cluster) != (split == "calibration")
            ):
                continue
            yielded += 1
            query = self.data.reading.ask(row)
            yield TaskSample(
                key=f"{part.split}-{number}",
                pictures=opened.pictures(row),
                question=query.question,
                references=query.references,
                choices=query.choices,
                group=row.optional(self.data.group) if self.data.group else "",
                cluster=cluster,
            )
        if not yielded and count != 0:
            raise InputError(f"{opened.rows.name} has no samples for task {self.name!r}, {split}")

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score by the data set's metric."""
        return self.scoring.score(sample, answer)

    def scores(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> list[float]:
        """Score by the data set's metric."""
        return self.scoring.scores(samples, answers)

    def summary(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return the mean score and the metric's further figures."""
        mean = super().summary(samples, answers)
        return mean | self.scoring.figures(samples, answers) if mean else {}

    def _open(self, part: Part) -> _Opened:
        if part not in self._opened:
            self._opened[part] = _Opened(self, part)
        return self._opened[part]


class _Opened:
    """A part of a data set with the rows that belong to the task."""

    def __init__(self, task: HubTask, part: Part) -> None:
        self.data = task.data
        self.rows = open_split(task.sources, task.name, part.config, part.split)
        self.rows.check(self.data.columns, task.name)
        self._pictures: Rows | None = None
        if part.pictures:
            self._pictures = open_split(task.sources, task.name, part.pictures, part.split)
            self._pictures.check(frozenset({"id", "image"}), task.name)

    @cached_property
    def order(self) -> list[int]:
        """Numbers of the task's rows, in the order in which samples come."""
        numbers = list(range(len(self.rows)))
        if self.data.only:
            column, value = self.data.only
            values = self.rows.column(column)
            numbers = [number for number in numbers if str(values[number]) == value]
        if self.data.below:
            column, bound = self.data.below
            values = self.rows.column(column)
            for number in numbers:
                if not isinstance(values[number], int):
                    raise InputError(
                        f"column {column!r} of row {number} of {self.rows.name} is "
                        f"{values[number]!r}, not a whole number"
                    )
            numbers = [number for number in numbers if values[number] < bound]
        if self.data.together:
            return shuffled_together(numbers, self._cluster_names)
        return shuffled(numbers)

    @cached_property
    def clusters(self) -> frozenset[str]:
        """Of all rows, whether or not they belong to the task."""
        if self.data.cluster:
            return frozenset(self._cluster_names)
        pictures = Rows(self.rows.dataset.select_columns([self.data.picture]), self.rows.name)
        return frozenset(pictures[i].fingerprint(self.data.picture) for i in range(len(pictures)))

    def cluster(self, number: int, row: Row) -> str:
        """Name what a row's picture has in common with other rows."""
        return (
            self._cluster_names[number] if self.data.cluster else row.fingerprint(self.data.picture)
        )

    def pictures(self, row: Row) -> tuple[PictureSource, ...]:
        """Find a row's pictures."""
        if self._pictures is None:
            return row.pictures(self.data.picture)
        picture = row.values[self.data.picture]
        if picture not in self._numbers:
            raise InputError(
                f"{row.name} is about picture {picture!r}, which {self._pictures.name} does not "
                "have"
            )
        return self._pictures[self._numbers[picture]].pictures("image")

    @cached_property
    def _cluster_names(self) -> list[str]:
        return [str(name) for name in self.rows.column(self.data.cluster)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Row of every picture, where pictures are in rows of their own."""
        assert self._pictures is not None
        return {name: number for number, name in enumerate(self._pictures.column("id"))}
