"""What was measured on an answer, as a person would say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlmflow.escape_invisible import shown
from vlmflow.result.reading import Box, Reading, mass_in, seen_share, smallest_box
from vlmflow.result.sentences import image_share_sentence, percent, shown_things
from vlmflow.result.shown_map import shown_map

if TYPE_CHECKING:
    from vlmflow.result.information_flow import InformationFlow

NAME_SHOWN = 60
SPREAD = 0.75
"""A box of more than this part of what an even map would need is no place."""

NAMED_MASS, NAMED_LEAD = 0.25, 2.0
"""A named region is what was read if it holds so much of the map, and so many times its share."""

UNTESTED = (
    "A map shows where this model's arithmetic points. How well it tells what the answer needs "
    "has not been tested here."
)


@dataclass(frozen=True)
class Verdict:
    """One target in words.

    Parameters
    ----------
    headline : str
        What the answer, or its token, read.
    picture : str
        Whether the picture matters to it.
    reading : Reading, optional
        The part of a picture that the headline speaks of.
    """

    headline: str
    picture: str
    reading: Reading | None


def verdict(
    flow: InformationFlow, target: int = 0, regions: Mapping[str, Box] | None = None
) -> Verdict:
    """Say what a target read, and whether the picture matters to it.

    Parameters
    ----------
    flow : InformationFlow
        What was measured.
    target : int
        0 is the whole answer, t its t-th token.
    regions : dict of str to box, optional
        Names of what is to be seen in the first picture, as ``"the red circle"``, and their boxes
        ``x0, y0, x1, y1`` in its pixels: a region is named where the map lies on it.
    """
    headline, reading = _headline(flow, target, regions or {})
    return Verdict(headline, _picture(flow, target), reading)


def _headline(
    flow: InformationFlow, target: int, regions: Mapping[str, Box]
) -> tuple[str, Reading | None]:
    found = _map(flow, target)
    reading = None if found is None else smallest_box(found[1], flow.layout)
    if found is None or reading is None:
        share = flow.attention_share[:, target : target + 1]
        return image_share_sentence(share, flow.layout, flow.subject), None
    label, values = found
    who = "It" if flow.words is None else f"To predict {flow.subject} the model"
    if target:
        who = f"For “{_word(flow.targets[target])}” the model"
    several = len(flow.layout.image_sizes) > 1
    for name, part in _by_density(values, flow, regions):
        if part.mass >= NAMED_MASS and part.mass >= NAMED_LEAD * part.area:
            return (
                f"{who} read {shown(name, NAME_SHOWN)}: {percent(part.mass)} of the {label} lies "
                f"there, on {percent(part.area)} of the picture."
            ), part
    which = "the picture"
    if several:
        which = flow.layout.frames_label(reading.image) or f"picture {reading.image + 1}"
    if reading.area > SPREAD * reading.mass * seen_share(flow.layout, reading.image):
        return (
            f"{who} read all over {which}: half of the {label} takes {percent(reading.area)} of it."
        ), reading
    return (
        f"{who} read {reading.place(flow.layout)} of {which}: {percent(reading.mass)} of the "
        f"{label} lies in {percent(reading.area)} of it."
    ), reading


def _map(flow: InformationFlow, target: int) -> tuple[str, npt.NDArray[np.float32]] | None:
    """Name and return the map that is spoken of."""
    chosen = shown_map(flow.about, flow.flags, flow.attention_share, target)
    if chosen is None:
        return None
    signal, layer = chosen
    label = shown(flow.about[signal].label, NAME_SHOWN)
    where = "" if layer is None else f" at layer {layer}"
    return f"{label}{where}", flow.map(signal, layer, target)


def _by_density(
    values: npt.ArrayLike, flow: InformationFlow, regions: Mapping[str, Box]
) -> list[tuple[str, Reading]]:
    parts = [(name, mass_in(values, flow.layout, box)) for name, box in regions.items()]
    return sorted(parts, key=lambda part: -part[1].mass / max(part[1].area, 1e-9))


def _picture(flow: InformationFlow, target: int) -> str:
    """Say what becomes of the answer without the picture."""
    effect = flow.picture_effect
    without = f"without the {shown_things(flow.layout)}"
    if effect is None:
        what = "this answer" if flow.words is None else flow.subject
        return f"How likely {what} is {without} was not measured." * bool(flow.pictures)
    if target:
        before, after = effect.with_picture[target - 1], effect.without_picture[target - 1]
        word, other = _word(flow.targets[target]), _word(effect.likeliest[target - 1])
        rather = (
            "it would still be the likeliest" if other == word else f"“{other}” would be likelier"
        )
        return (
            f"{without.capitalize()} “{word}” has a probability of {percent(after)} instead of "
            f"{percent(before)}; {rather}."
        )
    before, after = effect.whole()
    odds = f"probability {percent(after)} instead of {percent(before)}"
    pairs = list(zip(flow.answer_tokens, effect.likeliest, strict=True))
    same = all(own == other for own, other in pairs)
    if flow.words is not None:
        rest = "these tokens stay" if same else "other tokens would be"
        times = f"{odds} for {flow.subject}"
        if min(before, after) > 0:
            times = f"the picture makes {flow.subject} {_times(before / after)} as likely"
        return f"{without.capitalize()} {rest} the likeliest; {times}."
    if same:
        return f"The model gives this answer {without}, too ({odds})."
    words = [(own, other) for own, other in pairs if own.strip()]
    says = f"would say “{_word(words[0][1])}”" if len(words) == 1 else "would answer something else"
    return f"{without.capitalize()} it {says} ({odds} for this answer)."


def _times(ratio: float) -> str:
    if ratio > 1e6:
        return "more than a million times"
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def _word(token: str) -> str:
    return shown(token.strip() or "␣", NAME_SHOWN)
