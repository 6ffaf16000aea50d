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
    """

    label: str
    summary: str = ""
    source: str = ""
    colour: str = ""
    summed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.colour and not COLOUR.fullmatch(self.colour):
            raise InputError(
                f"colour={self.colour!r} is not a colour; write it as six digits: '#0072b2'"
            )

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary that JSON can hold."""
        return asdict(self) | {"summed": None if self.summed is None else list(self.summed)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> MapInfo:
        """Rebuild what :meth:`to_json` gave."""
        summed = plain["summed"]
        texts = {name: str(plain[name]) for name in ("label", "summary", "source", "colour")}
        return cls(**texts, summed=summed if summed is None else (int(summed[0]), int(summed[1])))
