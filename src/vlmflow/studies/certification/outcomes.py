"""What would become of samples under any policy, from what was measured of them once.

``n`` samples, ``E`` exit layers, ``G`` numbers of tokens kept. The signal of a sample that has not
left is that of the untouched model, so every policy can be replayed without running it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Measured samples and what leaving does to them."""

    layers: tuple[int, ...]  # E, increasing
    depth: int  # Decoder layers of the model
    keeps: tuple[float, ...]  # G: shares of the image tokens that stay after an exit
    changed: npt.NDArray[np.bool_]  # (n, E, G): whether the answer is another one
    losses: FloatArray  # (n, E, G): score untouched minus score then, -1 to 1
    signals: dict[str, FloatArray]  # Values by name of the exit signal: (n, E)
    states: npt.NDArray[np.float32]  # (n, E, 2 * width): last and mean text state, for a probe
    texts: npt.NDArray[np.float32]  # (n, width): mean embedding of the question, without a picture
    groups: tuple[str, ...]  # Kind of question
    clusters: tuple[str, ...]  # What samples share

    def __len__(self) -> int:
        return len(self.changed)

    def of(self, picked: npt.ArrayLike) -> Self:
        """Return some of the samples, by index or mask."""
        rows = np.asarray(picked)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return replace(
            self,
            changed=self.changed[rows],
            losses=self.losses[rows],
            signals={name: values[rows] for name, values in self.signals.items()},
            states=self.states[rows],
            texts=self.texts[rows],
            groups=tuple(self.groups[row] for row in rows),
            clusters=tuple(self.clusters[row] for row in rows),
        )

    def saved(self, exits: IntArray, keep: int) -> FloatArray:
        """Return the share of a sample's image-token layers that it spares: (n,).

        ``exits``, (n,), are indices of exit layers, E for a sample that stays.
        """
        left = np.array([*self.layers, self.depth])[exits]
        return (self.depth - left) / self.depth * (1 - self.keeps[keep])

    def changes(self, exits: IntArray, keep: int) -> npt.NDArray[np.bool_]:
        """Say whose answer is another one: (n,)."""
        return self._at(self.changed, exits, keep) > 0

    def loss(self, exits: IntArray, keep: int) -> FloatArray:
        """Return what each sample's score loses: (n,)."""
        return self._at(self.losses, exits, keep)

    def _at(self, table: npt.NDArray[np.generic], exits: IntArray, keep: int) -> FloatArray:
        stays = np.zeros((len(self), 1))
        padded = np.concatenate([table[:, :, keep].astype(np.float64), stays], axis=1)
        return padded[np.arange(len(self)), exits]

    @cached_property
    def oracle(self) -> IntArray:
        """Of each sample its own cliff without image tokens: the first exit from which none hurts.

        (n,): index of the exit layer from which on leaving changes nothing, E where even the last
        changes the answer. Without keep 0 among those measured, with the least that is kept.
        """
        least = int(np.argmin(self.keeps))
        later_hurts = np.logical_or.accumulate(self.changed[:, ::-1, least], axis=1)[:, ::-1]
        first: IntArray = np.where(
            later_hurts.all(1), len(self.layers), (~later_hurts).argmax(1)
        ).astype(np.int64)
        return first


def first_reached(values: FloatArray, thresholds: Sequence[float]) -> IntArray:
    """Replay an exit policy: index of the first exit whose threshold each sample reaches.

    ``values`` (n, E); E for a sample that reaches none. An infinite threshold is no exit, which a
    policy leaves out: not even an infinite value reaches it.
    """
    least = np.asarray(thresholds)
    reached = (values >= least) & (least < np.inf)
    exits: IntArray = np.where(reached.any(1), reached.argmax(1), values.shape[1]).astype(np.int64)
    return exits
