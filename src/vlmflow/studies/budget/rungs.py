"""The budgets that are tried, from many image tokens to few, as settings of the image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.resolution import with_image_settings
from vlmflow.studies.budget.settings import Budget
from vlmflow.tasks.base import TaskSample

HALVINGS = 5
"""Budgets where none are named: a half of the largest picture's tokens, a quarter, and so on."""

LOOKED_AT = 50
"""Samples among whose pictures the largest is looked for."""


@dataclass(frozen=True)
class Rung:
    """One budget."""

    tokens: int | None  # That no picture may exceed; None where settings were given
    settings: dict[str, Any]  # Of the image processor, in place of its own

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.tokens is None:
            return json.dumps(self.settings)
        return f"{self.tokens} token{'' if self.tokens == 1 else 's'}"


def rungs_of(
    vlm: LVLM, budgets: Sequence[Budget] | None, samples: Sequence[TaskSample]
) -> list[Rung]:
    """Return the budgets that are asked for, or halves of what the largest picture takes.

    ``samples`` are not those that test them: what is tested must not depend on these.

    Raises
    ------
    InputError
        If the model shows pictures at one size only, or cannot at one of the budgets.
    """
    if budgets is None:
        largest = _largest_picture(vlm, samples)
        if not largest:
            raise InputError(
                f"none of the first {min(len(samples), LOOKED_AT)} test samples shows a picture "
                "that can be read, so no budgets can be chosen; give them, as in (256, 128, 64)"
            )
        halves = [largest >> halving for halving in range(1, HALVINGS + 1)]
        rungs = [rung for tokens in halves if tokens and (rung := _rung(vlm, tokens)) is not None]
        if not rungs:
            raise InputError(
                f"{_who(vlm)} takes {largest} image tokens for a picture, and no settings of its "
                "image processor are known that give fewer; give budgets as settings, or spare "
                "tokens inside the decoder (vlmflow certify)"
            )
    else:
        rungs = []
        for budget in budgets:
            if isinstance(budget, Mapping):
                rungs.append(Rung(None, dict(budget)))
                continue
            rung = _rung(vlm, budget)
            if rung is None:
                raise InputError(
                    f"{_who(vlm)} cannot show a picture in {budget} image tokens, or no settings "
                    "of its image processor are known for that; give a larger budget, or the "
                    "settings"
                )
            rungs.append(rung)
    different: list[Rung] = []
    for rung in rungs:  # several numbers may come to the same tiles: the smallest says it best
        if different and rung.settings == different[-1].settings:
            different.pop()
        different.append(rung)
    for rung in different:
        with_image_settings(vlm, rung.settings)  # refused now, not after hours
    return different


def _rung(vlm: LVLM, tokens: int) -> Rung | None:
    settings = vlm.family.image_settings(vlm.processor, vlm.model.config, tokens)
    return None if settings is None else Rung(tokens, dict(settings))


def _largest_picture(vlm: LVLM, samples: Sequence[TaskSample]) -> int:
    """Count the image tokens of the picture that takes most; samples that fail fail later."""
    largest = 0
    for sample in samples[:LOOKED_AT]:
        for picture in sample.pictures:
            try:
                prompt = vlm.prepare([picture], "?")
            except Exception:  # what processors raise has no common base; it will be told later
                continue
            if prompt.layout.frames:
                continue
            largest = max(largest, prompt.layout.image_positions.size)
    return largest


def _who(vlm: LVLM) -> str:
    return f"{vlm.name} ({type(vlm.processor.image_processor).__name__})"
