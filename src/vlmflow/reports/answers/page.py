"""The page that lists a task's explained answers, those that failed or are wrong first."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

from markupsafe import Markup
from PIL import Image

from vlmflow.errors import VlmflowError
from vlmflow.escape_invisible import shown
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.visual_bytes import first_picture
from vlmflow.reports.content_policy import digest
from vlmflow.reports.plain_page import plain_page, script
from vlmflow.studies.explanations.answers import ExplainedAnswer, ExplainedTask

NAME_SHOWN, TEXT_SHOWN, SIDE = 120, 300, 96
REPORT = "report.html"


def answers_page(explained: ExplainedTask) -> str:
    """Write the list as one page of HTML with links to the reports beside it."""
    by_folder = {answer.folder: answer for answer in explained.answers}
    order = [by_folder[folder] for folder in explained.frame()["folder"]]
    scores = [answer.score for answer in order if answer.failure is None]
    sort = script("sort.js")
    return plain_page("answers.html.j2").render(
        task=shown(explained.task, NAME_SHOWN),
        model=shown(explained.model, NAME_SHOWN),
        metric=shown(explained.metric, NAME_SHOWN),
        score=f"{100 * sum(scores) / len(scores):.1f} %",
        count=len(scores),
        truncated=_truncated_words(explained),
        wrong=sum(score < 1 for score in scores),
        failed=len(explained.failures),
        rows=[_row(place, answer) for place, answer in enumerate(order)],
        settings=explained.settings,
        script=sort,
        digest=Markup(digest(sort)),
    )


def _truncated_words(explained: ExplainedTask) -> str:
    """Say how answers with image tokens removed score, where they were asked for."""
    pairs = [
        (answer, answer.truncated_score)
        for answer in explained.answers
        if answer.truncated_score is not None
    ]
    if not pairs:
        return ""
    score = 100 * sum(score for _, score in pairs) / len(pairs)
    changed = sum(answer.truncated != answer.answer for answer, _ in pairs)
    return (
        f"With image tokens removed {changed} of {len(pairs)} answers change, and "
        f"{shown(explained.metric, NAME_SHOWN)} is {score:.1f} %."
    )


def _row(place: int, answer: ExplainedAnswer) -> dict[str, Any]:
    failed = answer.failure is not None
    return {
        "place": place,
        "number": int(answer.folder.partition("-")[0]),
        "right": answer.score >= 1,
        "thumbnail": None if failed else _thumbnail(answer.sample.pictures[0]),
        "link": None if failed else f"{answer.folder}/{REPORT}",
        "key": shown(answer.sample.key, NAME_SHOWN),
        "question": shown(answer.sample.question, TEXT_SHOWN),
        "answer": "" if answer.answer is None else shown(answer.answer, TEXT_SHOWN),
        "reference": shown(" | ".join(answer.sample.references), TEXT_SHOWN),
        "score": "" if math.isnan(answer.score) else f"{answer.score:.2f}",
        "trust": shown(answer.trust, TEXT_SHOWN),
        "truncated": None
        if answer.truncated is None
        else shown(answer.truncated, TEXT_SHOWN) or "(nothing)",
        "same": answer.truncated == answer.answer,
        "read": shown(answer.failure or answer.headline, TEXT_SHOWN),
        "picture": shown(answer.picture, TEXT_SHOWN),
        "failed": failed,
    }


def _thumbnail(picture: VisualSource) -> str | None:
    """Put a small copy of a picture into an address; None where it cannot be read."""
    try:
        image = first_picture(picture).copy()
    except VlmflowError:
        return None
    image.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
