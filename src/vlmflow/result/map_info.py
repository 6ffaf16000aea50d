"""What pages, figures and tables need to know about a map beside its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.flow.signals.signal import COLOUR


@dataclass(frozen=True)
class MapInfo:
    """Describes the maps of one signal.

    Parameters
    ----------
    label : str
        What it is called where people read.
    summary : str
        What it shows, in one line.
    source : str
        Where its definition comes from.
    colour : str
        Of its curves, ``"#0072b2"``; empty: one of the palette's.
    summed : (int, int), optional
        First and last layer of the sum, where there is one map for all of them.
    whole : bool
        That one map is about the model as a whole; it is not a sum.
    searched_with : str
        How the map was searched for (``"removal of image tokens"``); empty where it was not. A
        figure of faithfulness with the same replacement is in-sample.
    """

    label: str
    summary: str = ""
    source: str = ""
    colour: str = ""
    summed: tuple[int, int] | None = None
    whole: bool = False
    searched_with: str = ""

    def __post_init__(self) -> None:
        if self.colour and not COLOUR.fullmatch(self.colour):
            raise InputError(
                f"colour={self.colour!r} is not a colour; write it as six digits: '#0072b2'"
            )

    @property
    def where(self) -> str:
        """What its one map is; empty for a map per layer."""
        if self.whole:
            return "one map of the whole model"
        return "" if self.summed is None else "summed over layers"

    @property
    def span(self) -> str:
        """The same for a figure's panel: ``"layers 0 to 5, summed"``."""
        if self.whole:
            return "whole model"
        if self.summed is None:
            return ""
        first, last = self.summed
        return f"layers {first} to {last}, summed" if last > first else f"layer {first}"

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary that JSON can hold."""
        return asdict(self) | {"summed": None if self.summed is None else list(self.summed)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> MapInfo:
        """Rebuild what :meth:`to_json` gave."""
        summed = plain["summed"]
        texts = {name: str(plain[name]) for name in ("label", "summary", "source", "colour")}
        return cls(
            **texts,
            summed=summed if summed is None else (int(summed[0]), int(summed[1])),
            whole=bool(plain.get("whole", False)),
            searched_with=str(plain.get("searched_with", "")),
        )
