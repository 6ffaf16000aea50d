"""Scores of the bundled tasks: exact answers, and CHAIR for captions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmflow.scenes.generator import COLOURS, KINDS
from vlmflow.scenes.tasks import Sample

_MENTION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")


def is_right(sample: Sample, answer: str) -> bool:
    """Whether an answer is the right one: the same words, up to case, spaces and a full stop."""
    return answer.strip().rstrip(".").lower() == sample.answer.strip().rstrip(".").lower()


def mentions(caption: str) -> list[tuple[str, str]]:
    """Every ``(colour, kind)`` a caption names, in its order."""
    return [(colour, kind) for colour, kind in _MENTION.findall(caption.lower())]


@dataclass(frozen=True)
class CaptionScore:
    """CHAIR (Rohrbach et al. 2018, arXiv 1809.02156) over a set of captions.

    Attributes
    ----------
    named
        Share of the pictures' objects (distinct colour and kind) that the captions name.
    chair_i
        Hallucinated mentions / all mentions.
    chair_s
        Captions with a hallucinated mention / all captions.
    objects, hits, mentions
        Objects in the pictures, how many of them were named, and all mentions.
    """

    named: float
    chair_i: float
    chair_s: float
    objects: int
    hits: int
    mentions: int


def score_captions(samples: Sequence[Sample], captions: Sequence[str]) -> CaptionScore:
    """Score one caption per sample; objects are told apart by colour and kind."""
    objects = hits = made = invented = wrong_captions = 0
    for sample, caption in zip(samples, captions, strict=True):
        here = {thing.category for thing in sample.scene.objects}
        said = mentions(caption)
        false = [mention for mention in said if mention not in here]
        objects += len(here)
        hits += len(here & set(said))
        made += len(said)
        invented += len(false)
        wrong_captions += bool(false)
    return CaptionScore(
        named=hits / max(objects, 1),
        chair_i=invented / max(made, 1),
        chair_s=wrong_captions / max(len(samples), 1),
        objects=objects,
        hits=hits,
        mentions=made,
    )


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); ``(0, 1)`` for no trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
