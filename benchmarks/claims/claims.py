"""The paper's claims, each with its rule in words and in code; set before anything was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.claims.evidence import Evidence
from benchmarks.claims.rules import (
    Verdict,
    aggregating_beats_dropping,
    aggregating_improves,
    attention_falls,
    attention_rises,
    converges_early,
    does_not_hurt,
    harder_is_earlier,
    has_cliff,
    helps,
    presets_do_not_hurt,
    ranking_beats_random,
)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its test."""

    number: str
    text: str  # What the paper says
    source: str
    rule: str  # The rule in words
    judge: Callable[[Sequence[Evidence]], list[Verdict]]  # Of one model's tasks


CLAIMS = (
    Claim(
        "1",
        "Information flow converges in shallow layers.",
        "section 3.2",
        "Holds where the layer whose saliency is most concentrated (mass of the strongest tenth of "
        "the image tokens) lies in the first half for at least 80 % of the samples, lower bound; "
        "fails where the upper bound is below 80 %.",
        converges_early,
    ),
    Claim(
        "2a",
        "After layer 3 image tokens get less than 2 % of the answer's attention.",
        "figure 2",
        "Holds where the mean share is below 2 % in every layer after the same depth (3 of 32) but "
        "the last, upper bounds; fails where it is above 2 % in one of them, lower bound.",
        attention_falls,
    ),
    Claim(
        "2b",
        "The share rises again in the last layer.",
        "figure 2",
        "Holds where the last layer's share is larger than that of the layer before, interval of "
        "the paired difference above 0.",
        attention_rises,
    ),
    Claim(
        "3",
        "There is a cliff layer before the end.",
        "section 1",
        "Holds where some layer exists from which on removing all image tokens changes at most 5 % "
        "of the answers, in 97.5 % of the bootstrap draws; fails where 97.5 % have none.",
        has_cliff,
    ),
    Claim(
        "4",
        "Harder reasoning has its cliff earlier, captions last.",
        "sections 1 and 4.2",
        "The paper's order of tasks: multiple choice, reading, yes/no, captions. Holds for two "
        "neighbours where the later one's cliff is nowhere earlier in the interval of the gap.",
        harder_is_earlier,
    ),
    Claim(
        "5a",
        "Truncation at the cliff layer does not hurt.",
        "table 1",
        "The cliff is chosen on the calibration split (first layer tried from which on at most 5 % "
        "of the answers change). Holds where the test score loses less than 3 points, lower bound.",
        does_not_hurt,
    ),
    Claim(
        "5b",
        "It helps: consistent improvements.",
        "abstract, table 1",
        "Holds where the interval of the same difference lies above 0; fails where it excludes a "
        "gain of one point.",
        helps,
    ),
    Claim(
        "6",
        "Ranking by attention in shallow layers is better than chance.",
        "section 3.4",
        "Layer (up to a third of the depth) and share kept (50, 25, 10 %, one token) are those of "
        "the largest gain over random tokens on the calibration split. Holds where the gain on "
        "the test split is above 0.",
        ranking_beats_random,
    ),
    Claim(
        "8",
        "FastV, VTW and PyramidDrop keep the score at their stated settings.",
        "their papers",
        "Holds where the test score loses less than 3 points, lower bound.",
        presets_do_not_hurt,
    ),
    Claim(
        "9a",
        "Aggregating image tokens in shallow layers improves answers.",
        "abstract of the second version",
        "Merging into the most similar kept token at a layer up to a third of the depth, keeping "
        "50, 25, 10 % or one token, whichever scores best on the calibration split. Holds where "
        "the test score gains, interval above 0; fails where a gain of one point is excluded.",
        aggregating_improves,
    ),
    Claim(
        "9b",
        "Aggregating is better than dropping as many tokens.",
        "abstract of the second version",
        "The same setting against dropping; holds where the interval lies above 0.",
        aggregating_beats_dropping,
    ),
)
CLAIM_7 = Claim(
    "7",
    "The pattern depends on the language model, not on the connector.",
    "section 4.2",
    "Two connectors on one decoder against two decoders behind one connector: holds where relative "
    "cliff layers differ more between decoders, by more than two seeds of one model differ.",
    lambda _tasks: [],
)
