"""CHAIR: objects that captions name and the picture does not have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmflow.tasks.metrics.coco_objects import LONGEST, PHRASES


@dataclass(frozen=True)
class Chair:
    """CHAIR (Rohrbach et al., EMNLP 2018) over a set of captions.

    Attributes
    ----------
    chair_i
        Mentions of objects that are not in the picture / all mentions.
    chair_s
        Captions with such a mention / all captions.
    mentions
        All mentions.
    """

    chair_i: float
    chair_s: float
    mentions: int


def mentions(text: str) -> list[str]:
    """Return the COCO category of every object a text names, in its order.

    Longer phrases go first, so that a "teddy bear" is no bear, a "hot dog" no dog, and a "train
    station" no train.
    """
    words = re.findall(r"[a-z]+", text.lower())
    found: list[str] = []
    at = 0
    while at < len(words):
        for length in range(min(LONGEST, len(words) - at), 0, -1):
            phrase = " ".join(words[at : at + length])
            if phrase in PHRASES:
                category = PHRASES[phrase]
                found += [category] if category else []
                at += length
                break
        else:
            at += 1
    return found


def chair(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Chair:
    """Score captions, with the objects that the reference captions name as ground truth.

    The original adds the pictures' instance annotations, which caption data sets do not carry: an
    object that is there and that no annotator mentioned counts as hallucinated here, so the values
    lie above the original's.

    Parameters
    ----------
    captions : sequence of str
        One per picture.
    references : sequence of sequence of str
        All reference captions of each picture.
    """
    said = invented = wrong = 0
    for caption, known in zip(captions, references, strict=True):
        here = {category for one in known for category in mentions(one)}
        named = mentions(caption)
        false = [category for category in named if category not in here]
        said += len(named)
        invented += len(false)
        wrong += bool(false)
    return Chair(invented / max(said, 1), wrong / max(len(captions), 1), said)
