"""What one line of the catalogue says about a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmflow.tasks.hub.reading import Reading
from vlmflow.tasks.metrics.base import Metric


@dataclass(frozen=True)
class Part:
    """Where rows are.

    Parameters
    ----------
    split : str
        The hub's name of the split.
    config : str, optional
        The hub's name of the configuration.
    pictures : str, optional
        Configuration that holds the pictures, in a split of the same name with columns ``id`` and
        ``image``; None: they are in the rows.
    """

    split: str
    config: str | None = None
    pictures: str | None = None


@dataclass(frozen=True)
class HubData:
    """A data set of the hub as a task.

    Parameters
    ----------
    description : str
        One line.
    hub : tuple of str
        Its ids on the hub, the first one that opens is taken.
    reading : Reading
        How a row becomes a question.
    metric : type of Metric
        How answers are scored.
    test : Part
        The official split with answers.
    calibration : Part, optional
        Another official split with answers. None: a third of ``test``'s pictures.
    picture : str
        Column of the pictures, or of their ``id`` in ``Part.pictures``.
    cluster : str
        Column that is the same for all rows about one picture; empty: the picture's content says.
    group : str
        Column of the sample's group; empty: none.
    only : tuple of str, optional
        Column and value of the rows that belong to the task.
    below : tuple of (str, int), optional
        Column and bound that its numbers lie below.
    together : bool
        Whether rows about one picture follow each other: a metric needs all of them.
    max_new_tokens : int
        Longest answer the metric needs.
    """

    description: str
    hub: tuple[str, ...]
    reading: Reading
    metric: type[Metric]
    test: Part
    calibration: Part | None = None
    picture: str = "image"
    cluster: str = ""
    group: str = ""
    only: tuple[str, str] | None = None
    below: tuple[str, int] | None = None
    together: bool = False
    max_new_tokens: int = 16
    columns: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the columns that have to be there."""
        columns = {self.picture, self.cluster}
        columns |= {condition[0] for condition in (self.only, self.below) if condition}
        object.__setattr__(self, "columns", self.reading.columns | (columns - {""}))
