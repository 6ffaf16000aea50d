"""Rows of a file of questions, JSONL or CSV, read by the rules of its format or refused."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.errors import InputError
from vlmflow.files import as_path


class Number(str):
    """A JSON number, as it is spelled: ``1.50`` stays ``1.50``."""


@dataclass(frozen=True)
class Row:
    """What one line says.

    Parameters
    ----------
    path : Path
        The file.
    line : int
        Its first line there, counted from 1.
    values : dict
        By field: text, :class:`Number`, or lists and dictionaries of them. A field that is null,
        or an empty cell of CSV, is left out.
    """

    path: Path
    line: int
    values: dict[str, Any]

    def wrong(self, what: str) -> InputError:
        """Return an error that names the line."""
        return InputError(f"line {self.line} of {str(self.path)!r}: {what}")


def read_rows(path: Path) -> Iterator[Row]:
    """Read a ``.jsonl`` or ``.csv`` file in UTF-8, with or without a byte order mark.

    JSONL ends its lines with a line feed and nothing else; CSV is read as RFC 4180 has it, with
    quoted cells over several lines and as many cells in every row as in the header.

    Raises
    ------
    InputError
        If it cannot be read, or a line is not as its format has it.
    """
    read = {".jsonl": _json_rows, ".csv": _csv_rows}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"task file {str(path)!r} is neither .jsonl nor .csv")
    try:
        text = as_path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"task file {str(path)!r} cannot be read ({reason})") from error
    return read(path, text)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    decoder = json.JSONDecoder(
        object_pairs_hook=_object,
        parse_float=_finite,
        parse_int=Number,
        parse_constant=_refuse_constant,
    )
    for number, line in enumerate(text.split("\n"), start=1):
        # The white space of JSON alone: any other is not JSON, and is refused as such.
        if not (stripped := line.strip(" \t\r")):
            continue
        row = Row(path, number, {})
        try:
            values = decoder.decode(stripped)
            # Half of a surrogate pair: JSON can spell it, and no encoding can hold it.
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except json.JSONDecodeError as error:
            raise row.wrong(f"is not JSON ({error.msg}, column {error.colno})") from error
        except RecursionError as error:
            raise row.wrong("is nested too deeply") from error
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise row.wrong(f"{half!r} is half of a surrogate pair, not text") from error
        except ValueError as error:
            raise row.wrong(str(error)) from error
        if not isinstance(values, dict):
            raise row.wrong("is not a JSON object")
        yield Row(path, number, {key: value for key, value in values.items() if value is not None})


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


def _finite(text: str) -> Number:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is too large for a number")
    return Number(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        row = Row(path, reader.line_num + 1, {})
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise row.wrong(f"is not CSV ({error}); .jsonl files take any text") from error
        if cells is None:
            return
        if not cells:
            continue  # an empty line
        if header is None:
            header = cells
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise row.wrong(f"{twice[0]!r} heads two columns")
        elif len(cells) != len(header):
            raise row.wrong(f"has {len(cells)} cells, but the header has {len(header)}")
        else:
            filled = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
            yield Row(path, row.line, filled)
