"""How far one map can be trusted: what inserting and deleting the picture in its order gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.result.map_info import MapInfo
from vlmflow.statistics.student import t_quantile

if TYPE_CHECKING:
    from vlmflow.lvlm.layout import TokenLayout

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores over the share of the picture's area that has come, or gone.

    Parameters
    ----------
    insertion : (steps + 1,) float64
        From the replaced picture to the whole one, the map's strongest pixels first.
    deletion : (steps + 1,) float64
        From the whole picture to the replaced one, the same pixels first.
    """

    insertion: FloatArray
    deletion: FloatArray

    @property
    def areas(self) -> tuple[float, float]:
        """Areas under insertion (more is better) and deletion (less is better), by trapezoids."""
        insertion, deletion = (
            float((curve[1:] + curve[:-1]).mean() / 2) for curve in (self.insertion, self.deletion)
        )
        return insertion, deletion

    @property
    def difference(self) -> float:
        """Insertion minus deletion: 0 on average for a random order, whatever the model."""
        insertion, deletion = self.areas
        return insertion - deletion


@dataclass(frozen=True, eq=False)
class Trust:
    """Insertion and deletion of one map, and of maps drawn at random.

    Parameters
    ----------
    about : MapInfo
        What the map is called.
    layer : int, optional
        Its layer; None for a sum over layers.
    token : str
        The answer token it is for; empty for the whole answer.
    replacement : str
        What stood where the picture was not shown.
    curves : Curves
        Of the map: mean probability of the answer's tokens over the share of the area.
    random : tuple of float
        Insertion minus deletion of random maps over the same tokens.
    signal : str
        Name of the map in its result, or of a control.
    target, image : int
        Number of the target, and of the picture that came and went.
    is_control : bool
        Whether it is no map of the model's, but a control in its place.
    subject : str
        What is explained: ``this answer``, or as in ``the word “left” of the question``.
    """

    about: MapInfo
    layer: int | None
    token: str
    replacement: str
    curves: Curves
    random: tuple[float, ...]
    signal: str
    target: int = 0
    image: int = 0
    is_control: bool = False
    subject: str = "this answer"

    @property
    def limit(self) -> float:
        """Half the width of the interval that holds 95 % of random maps, around 0.

        An order and its reverse have opposite differences, so that the mean of random orders is 0
        exactly and only their spread is estimated.
        """
        spread = math.sqrt(float(np.mean(np.square(self.random))))
        return t_quantile(0.975, len(self.random)) * spread

    @property
    def difference(self) -> float:
        """Insertion minus deletion of the map."""
        return self.curves.difference

    @property
    def steps(self) -> int:
        """Equally large steps of a curve."""
        return len(self.curves.insertion) - 1

    def __str__(self) -> str:
        """Say in one sentence whether the map ranks regions better than chance."""
        where = self.about.label + ("" if self.layer is None else f" at layer {self.layer}")
        where += " control" if self.is_control else ""
        what = f"the token {self.token!r}" if self.token else self.subject
        chance = "no better than chance"
        if abs(self.difference) > self.limit:
            chance = "better than chance" if self.difference > 0 else "worse than chance"
        return (
            f"The {where} ranks regions {chance} for {what}: insertion minus deletion "
            f"{self.difference:+.3f}, random maps within {self.limit:.3f} of 0."
        )

    def to_json(self) -> dict[str, Any]:
        """Return all but what the result knows already, in JSON's own types."""
        return {
            "signal": self.signal,
            "layer": self.layer,
            "target": self.target,
            "image": self.image,
            "is_control": self.is_control,
            "replacement": self.replacement,
            "insertion": self.curves.insertion.tolist(),
            "deletion": self.curves.deletion.tolist(),
            "random": list(self.random),
        }

    @classmethod
    def from_json(
        cls,
        plain: Mapping[str, Any],
        about: Mapping[str, MapInfo],
        targets: tuple[str, ...],
        subject: str,
    ) -> Trust:
        """Rebuild what :meth:`to_json` gave beside a result's signals, targets and subject."""
        curves = (np.array(plain[name], dtype=np.float64) for name in ("insertion", "deletion"))
        signal, target = str(plain["signal"]), int(plain["target"])
        return cls(
            about=about.get(signal, MapInfo(signal)),
            layer=None if plain["layer"] is None else int(plain["layer"]),
            token=targets[target].strip() if target else "",
            replacement=str(plain["replacement"]),
            curves=Curves(*curves),
            random=tuple(map(float, plain["random"])),
            signal=signal,
            target=target,
            image=int(plain["image"]),
            is_control=bool(plain["is_control"]),
            subject=subject,
        )

    def check(
        self, about: Mapping[str, MapInfo], targets: tuple[str, ...], layout: TokenLayout
    ) -> None:
        """Raise InputError if this was not measured on a map of such a result."""
        if not self.is_control and self.signal not in about:
            raise InputError(f"trust is of the signal {self.signal!r}, of which there is no map")
        in_range = 0 <= self.target < len(targets) and 0 <= self.image < len(layout.image_sizes)
        if not in_range or self.token != (targets[self.target].strip() if self.target else ""):
            raise InputError("trust is of a target or of a picture that this result does not have")
        insertion, deletion = self.curves.insertion, self.curves.deletion
        numbers = np.concatenate([insertion, deletion, self.random])
        shaped = insertion.ndim == 1 and insertion.shape == deletion.shape and len(insertion) > 1
        if not shaped or not self.random or not np.isfinite(numbers).all():
            raise InputError("trust needs two curves of the same steps and differences, all finite")
