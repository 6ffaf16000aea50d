"""Texts as a reader should see them: nothing invisible, nothing that reorders its surroundings."""

from __future__ import annotations

import unicodedata

# letters and marks that draw nothing, beside those whose category already says so
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Cc controls, Cf formats (bidi, zero-width, tags), Cs lone surrogates, Zl and Zp separators
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def is_unseen(character: str) -> bool:
    """Whether a character draws nothing or changes what stands around it."""
    return character in _BLANK or unicodedata.category(character) in _UNSEEN


def visible(text: str) -> str:
    """Spell out every control, bidi, zero-width and blank character of a text.

    A model, a prompt or a file name can hold characters that hide words or reverse the order of the
    text around them. U+202E, for example, becomes ``⟦U+202E⟧``. Line breaks and tabs stay. What
    comes out can be encoded as UTF-8, whatever came in.
    """
    return "".join(
        f"⟦U+{ord(character):04X}⟧"
        if character not in "\n\t" and is_unseen(character)
        else character
        for character in text
    )


def clipped(text: str, limit: int) -> str:
    """Cut a long text down to its two ends, with a line between them that says how much is gone."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out here …]\n{text[-half:]}"


def shown(value: object, limit: int) -> str:
    """Write any value as visible text of bounded length."""
    return visible(clipped(value if isinstance(value, str) else str(value), limit))
