"""Values of parameters: as a command line writes them, as JSON holds them, as objects have them."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from vlmflow.errors import InputError

T = TypeVar("T")

LARGEST = 2**31 - 1
"""Largest count and seed: beyond it, generators and tensors have limits of their own."""


def check_integer(name: str, value: object, least: int = 0, most: int = LARGEST) -> None:
    """Refuse what is not an integer from ``least`` to ``most``, as InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        is_long = isinstance(value, int) and value.bit_length() > 128
        shown = "an integer of over 38 digits" if is_long else repr(value)
        raise InputError(f"{name}={shown}; give an integer from {least} to {most:,}")


def is_number(value: object) -> bool:
    """Tell whether a value is a number and not a truth value or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def given_list(name: str, given: Sequence[T] | None) -> tuple[T, ...] | None:
    """Return what a user gave as a list; InputError for anything else, a text among them."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(f"{name}={given!r} is not a list; pass one, as [{given!r}]")
    return tuple(given)


def literal(text: str) -> Any:
    """Read a parameter as a command line gives it.

    A number, a truth value, ``None``, a tuple of these or a text in quotes is what Python takes it
    for; anything else is a text.
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str | tuple | list | None) else text


def split_outside_brackets(text: str, at: str = ",") -> list[str]:
    """Split a text at the commas, or other signs, that are outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([":
            depth += 1
        elif sign in ")]":
            depth -= 1
        elif sign == at and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return parts if len(parts) > 1 or text.strip() else []


def as_plain(value: Any, name: str) -> Any:
    """Return a parameter, which errors call ``name``, as JSON can hold it.

    Raises InputError for anything but text, a finite number, a boolean, None or a tuple of these.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}, which cannot be saved; give a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [as_plain(item, name) for item in value]
    raise InputError(
        f"{name} is a {type(value).__name__}, which cannot be saved; parameters are texts, "
        "numbers, booleans and tuples of them"
    )


def as_tuples(value: Any) -> Any:
    """Turn the lists of JSON into the tuples that they were."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(as_tuples, value))
    return value
