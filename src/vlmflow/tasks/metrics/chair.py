"""CHAIR: objects that captions name and the picture does not have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


@dataclass(frozen=True)
class Chair:
    """CHAIR (Rohrbach et al., EMNLP 2018, arXiv 1809.02156) over a set of captions."""

    named: float  # Share of the pictures' objects that the captions name
    chair_i: float  # Mentions of objects that are not in the picture / all mentions
    chair_s: float  # Captions with such a mention / all captions
    # Number of objects in the pictures, of those that are named, and of all mentions
    objects: int
    hits: int
    mentions: int


def chair(
    captions: Sequence[str],
    objects: Sequence[AbstractSet[Hashable]],
    mentions: Callable[[str], Sequence[Hashable]],
) -> Chair:
    """Score captions, one per picture, against the distinct objects in their pictures.

    ``mentions`` is the vocabulary: it gives every object that a caption names, in its order, as
    ``objects`` has them.
    """
    object_count = hits = mention_count = hallucinated = wrong_captions = 0
    for caption, present in zip(captions, objects, strict=True):
        named = mentions(caption)
        absent = [mention for mention in named if mention not in present]
        object_count += len(present)
        hits += len(present & set(named))
        mention_count += len(named)
        hallucinated += len(absent)
        wrong_captions += bool(absent)
    return Chair(
        named=hits / max(object_count, 1),
        chair_i=hallucinated / max(mention_count, 1),
        chair_s=wrong_captions / max(len(captions), 1),
        objects=object_count,
        hits=hits,
        mentions=mention_count,
    )
