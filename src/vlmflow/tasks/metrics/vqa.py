"""VQA accuracy (VQAv2, TextVQA): agreement with ten annotators, after a normalisation."""

from __future__ import annotations

import re

from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset({"a", "an", "the"})
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")

# Each is also recognised with any one of its apostrophes missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _misspelt() -> dict[str, str]:
    table = {
        whole[:at] + whole[at + 1 :]: whole
        for whole in _CONTRACTIONS.split()
        for at, letter in enumerate(whole)
        if letter == "'"
    }
    # The published table has this one the other way round.
    return table | {"somebody'd": "somebodyd"}


_WHOLE = _misspelt()


def normalise(answer: str) -> str:
    """Bring an answer into the form that VQA accuracy compares.

    Lower case; commas and question marks go; "'s" stands alone; other punctuation goes where it
    touches a space anywhere, and turns into a space elsewhere; full stops go except in front of a
    digit; number words up to ten become digits, articles go, and contractions get the apostrophe
    they lack. This is the answer processor of the EvalAI server for TextVQA, which lmms-eval uses
    for both data sets; VQAv2's first script differs in details ("'s", answers all ten agree on).
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    kept = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", kept).split())
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)


class VqaAccuracy(Metric):
    """Mean over all leave-one-out sets of annotators of ``min(those who said it / 3, 1)``.

    Antol et al., ICCV 2015, section 3, as the evaluation server computes it. With ten annotators an
    answer that 1, 2, 3 or 4 and more gave scores 0.3, 0.6, 0.9 or 1.
    """

    name = "VQA accuracy"

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer."""
        text = normalise(answer)
        same = [normalise(reference) == text for reference in sample.references]
        return sum(min((sum(same) - own) / 3, 1.0) for own in same) / len(same)
