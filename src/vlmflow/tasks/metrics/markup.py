"""Markup that chat models wrap answers in: Markdown, LaTeX, tags, chains of thought."""

from __future__ import annotations

import re
import unicodedata

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_ANSWER = re.compile(r"<(?:final_)?answer>", re.IGNORECASE)
_END_OF_ANSWER = re.compile(r"</(?:final_)?answer>", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_MARKS = re.compile(
    r"</?[A-Za-z][\w-]*(?:\s[^<>]*)?/?>"  # tags
    r"|\\(?:text|math)[a-z]{0,2}\s*\{|\\mbox\s*\{|\\[()\[\]]|[{}$]"  # LaTeX
    r"|[*`]+|(?<!\w)_+|_+(?!\w)|^[ \t]*(?:#+|>+)[ \t]+",  # Markdown
    re.MULTILINE,
)


def final_text(answer: str) -> str:
    r"""Return what an answer says in the end, as plain text.

    A chain of thought (``<think>``) is left out; where the answer marks its end
    (``<answer>``, ``\boxed{}``), that alone is returned, the last one of several; Markdown, LaTeX
    and tags around words are taken off. Lines stay lines, and letters of full width become plain.
    """
    text = _THOUGHT.sub("", unicodedata.normalize("NFKC", answer))
    text = _END_OF_THOUGHT.split(text)[-1]  # a template may open the thought for the model
    text = _END_OF_ANSWER.split(_ANSWER.split(text)[-1])[0]
    *_, last = _BOX.split(text)
    if last != text:
        text = last[: _closing_brace(last)]
    return _MARKS.sub("", text).strip()


def _closing_brace(text: str) -> int:
    """Where the brace is closed that was open before the text."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return place
    return len(text)
