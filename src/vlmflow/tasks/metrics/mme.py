"""MME: two yes/no questions per picture, and sums over categories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from vlmflow.errors import InputError
from vlmflow.tasks.base import TaskSample
from vlmflow.tasks.metrics.base import Metric

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip


def yes_or_no(answer: str) -> str:
    """Read ``yes``, ``no`` or neither (empty).

    The first four letters hold the word, or ``y`` or ``n`` stands alone: the rule of lmms-eval,
    after MME's script (Fu et al., arXiv 2306.13394).
    """
    text = answer.strip().lower().replace(".", "")
    if text in ("y", "n"):
        return {"y": "yes", "n": "no"}[text]
    for word in ("yes", "no"):
        if word in text[:4]:
            return word
    return ""


class Mme(Metric):
    """Share of right answers; :meth:`figures` adds MME's own sums.

    A category's score is 100 times its accuracy plus 100 times its accuracy+ (pictures with all
    their questions right / pictures), at most 200. ``perception`` is the sum over its ten
    categories (at most 2,000), ``cognition`` over its four (at most 800); categories without
    samples add nothing. A picture with only one of its questions counts for the accuracy alone.
    """

    name = "accuracy"

    def score(self, sample: TaskSample, answer: str) -> float:
        """Score one answer."""
        return float(yes_or_no(answer) == yes_or_no(sample.references[0]))

    def figures(self, samples: Sequence[TaskSample], answers: Sequence[str]) -> dict[str, float]:
        """Return perception, cognition, accuracy+ and every category's score."""
        by_picture: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for sample, score in zip(samples, self.scores(samples, answers), strict=True):
            if sample.group not in PERCEPTION + COGNITION:
                raise InputError(
                    f"MME has no category {sample.group!r} (sample {sample.key}); "
                    f"there are {', '.join(PERCEPTION + COGNITION)}"
                )
            by_picture[sample.group][sample.cluster].append(score)
        pictures = {name: list(pairs.values()) for name, pairs in by_picture.items()}
        sums = {
            name: 100 * (_mean([score for pair in pairs for score in pair]) + _plus(pairs))
            for name, pairs in pictures.items()
        }
        return {
            "accuracy+": _plus([pair for pairs in pictures.values() for pair in pairs]),
            "perception": sum(sums.get(name, 0.0) for name in PERCEPTION),
            "cognition": sum(sums.get(name, 0.0) for name in COGNITION),
            **{name: sums[name] for name in PERCEPTION + COGNITION if name in sums},
        }


def _plus(pictures: Sequence[Sequence[float]]) -> float:
    return _mean([float(all(pair)) for pair in pictures if len(pair) > 1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
