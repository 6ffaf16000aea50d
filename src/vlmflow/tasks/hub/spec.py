"""What one line of the catalogue says about a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmflow.tasks.hub.reading import Reading
from vlmflow.tasks.metrics.base import Metric


@dataclass(frozen=True)
class Part:
    """Where rows are."""

    split: str  # The hub's name of the split
    config: str | None = None  # The hub's name of the configuration
    # Configuration that holds the pictures, in a split of the same name with columns ``id`` and
    # ``image``; None: they are in the rows
    pictures: str | None = None


@dataclass(frozen=True)
class HubData:
    """A data set of the hub as a task."""

    description: str  # One line
    hub: tuple[str, ...]  # Its ids on the hub, the first one that opens is taken
    reading: Reading  # How a row becomes a question
    metric: type[Metric]  # How answers are scored
    test: Part  # The official split with answers
    # Another official split with answers. None: a third of ``test``'s pictures.
    calibration: Part | None = None
    picture: str = "image"  # Column of the pictures, or of their ``id`` in ``Part.pictures``
    # Column that is the same for all rows about one picture; empty: the picture's content says
    cluster: str = ""
    group: str = ""  # Column of the sample's group; empty: none
    only: tuple[str, str] | None = None  # Column and value of the rows that belong to the task
    below: tuple[str, int] | None = None  # Column and bound that its numbers lie below
    # Whether rows about one picture follow each other: a metric needs all of them
    together: bool = False
    max_new_tokens: int = 16  # Longest answer the metric needs
    columns: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the columns that have to be there."""
        columns = {self.picture, self.cluster}
        columns |= {condition[0] for condition in (self.only, self.below) if condition}
        object.__setattr__(self, "columns", self.reading.columns | (columns - {""}))
