"""Region removal: which regions the answer needs, by really removing their image tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.regions import regions_of
from vlmflow.flow.signals.answer_view import BRANCHES_AT_ONCE, AnswerView
from vlmflow.flow.signals.signal import Passes, Signal
from vlmflow.parameters import check_integer

MOST_REGIONS = 256
"""More would take passes by the thousand."""


@dataclass(frozen=True)
class RegionRemoval(Signal):
    """What each region adds to the answer as regions appear and vanish: one map, by search.

    A definition of vlmflow's own, of known parts. Image tokens are removed before layer 0, the
    others keep their positions. With ``f(S)`` the target where the regions ``S`` alone are left,
    the score is ``F(S) = f(S) - f(all without S)``, what is enough less what remains without (the
    two terms of EAGLE, arXiv 2509.22496). First, every region is left out and shown alone. From the
    best one on, regions are added greedily: at each step the ``width`` most promising of those left
    are tried, by what they added when they were last tried. When ``forwards`` are used up, the
    others follow by what they added last.

    A region's value is what it added to ``F`` of the whole answer, and never as much as the region
    before it in the order of the search, which the map thus keeps. A token's map holds what each
    region added to that token, along the same order. All tokens of a region have its value.

    The map was searched with removal of image tokens: figures of its faithfulness by the same
    replacement are in-sample.

    Parameters
    ----------
    regions : int
        Into how many the pictures are cut, all together; see
        :func:`vlmflow.flow.regions.regions_of`.
    forwards : int
        Short forward passes at most, at least ``2 * regions + 1``. Each batch of them runs the
        untouched prompt once beside it.
    width : int
        Regions that are tried at each step.
    """

    name = "region_removal"
    summary = "regions of image tokens left out and added greedily (regions, forwards, width)"
    label = "region removal"
    source = "by vlmflow, with the score of EAGLE (arXiv 2509.22496)"
    reads = "removal"
    whole = True

    regions: int = 16
    forwards: int = 64
    width: int = 2

    def __post_init__(self) -> None:
        check_integer("regions", self.regions, least=2, most=MOST_REGIONS)
        check_integer("width", self.width, least=1)
        check_integer("forwards", self.forwards)
        if self.forwards < 2 * self.regions + 1:
            raise InputError(
                f"forwards={self.forwards}, but {self.regions} regions left out and shown alone, "
                f"and none shown, take {2 * self.regions + 1}; allow that many or cut fewer regions"
            )

    def passes(self, tokens: int = 0) -> Passes:
        """Count the most that the search takes, for any targets; see :meth:`Signal.passes`.

        The untouched prompt that runs beside each batch is counted as well. A picture of few tokens
        has fewer regions, and leaves more to the steps.
        """
        del tokens
        return max((self._passes(count) for count in range(1, self.regions + 1)), key=_forward)

    def _passes(self, regions: int) -> Passes:
        used, left = 2 * regions + 1, regions - 1
        batches = math.ceil(used / BRANCHES_AT_ONCE)
        while tried := self._tried(left, used):
            used, left = used + 2 * tried, left - 1
            batches += math.ceil(2 * tried / BRANCHES_AT_ONCE)
        return Passes(used + batches, 0)

    def of_answer(self, seen: AnswerView) -> Tensor:
        """Search; see :meth:`Signal.of_answer`."""
        regions = torch.from_numpy(regions_of(seen.layout, self.regions))
        count = int(regions.max()) + 1
        gained, order = self._search(seen, regions, count)
        values = gained.clone()
        for before, region in pairwise(order):
            just_less = np.nextafter(np.float32(values[before, 0]), np.float32(-np.inf))
            values[region, 0] = min(float(values[region, 0]), float(just_less))
        return values[regions].T

    def _search(self, seen: AnswerView, regions: Tensor, count: int) -> tuple[Tensor, list[int]]:
        """Return what each region added to each target, (regions, 1 + T), and their order."""

        def scores(shown: list[list[int]], *, none: bool = False) -> tuple[Tensor, ...]:
            """Give ``f`` of sets of regions, of all but them, and of none: (sets, 1 + T) each."""
            is_shown = torch.stack([torch.isin(regions, torch.tensor(s)) for s in shown])
            nothing = torch.ones(int(none), len(regions), dtype=torch.bool)
            targets = _with_whole(seen.without(torch.cat([~is_shown, is_shown, nothing])))
            return torch.split(targets, [len(shown), len(shown), int(none)])

        alone, without, none = scores([[region] for region in range(count)], none=True)
        # With no region at all, less what is left without none of them: the untouched prompt.
        reached = none[0] - _with_whole(seen.intact[None])[0]
        gained = alone - without - reached
        order: list[int] = []
        used, left = 2 * count + 1, list(range(count))
        while left:
            left.sort(key=lambda region: -float(gained[region, 0]))  # stable: the first of equals
            tried = self._tried(len(left), used) if order else 0
            if tried:
                shown, gone, _ = scores([[*order, region] for region in left[:tried]])
                gained[left[:tried]] = shown - gone - reached
                used += 2 * tried
            best = max(left[: max(1, tried)], key=lambda region: float(gained[region, 0]))
            order.append(best)
            left.remove(best)
            reached = reached + gained[best]
        return gained, order

    def _tried(self, left: int, used: int) -> int:
        """How many of the regions that are left are tried at a step, as the budget allows.

        The last one of all adds what it added in the first round, where it was left out.
        """
        return max(0, min(self.width, left, (self.forwards - used) // 2)) if left > 1 else 0


def _forward(passes: Passes) -> int:
    return passes.forward


def _with_whole(targets: Tensor) -> Tensor:
    """(n, T) -> (n, 1 + T): the whole answer's first, the sum of its tokens'."""
    targets = targets.cpu().double()
    return torch.cat([targets.sum(1, keepdim=True), targets], dim=1)
