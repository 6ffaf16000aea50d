"""What a truncation left of the picture at every layer, beside the untouched answer explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError


@dataclass(frozen=True, eq=False)
class TruncatedAnswer:
    """The model's answer to the same prompt under a truncation, and what each layer saw.

    Parameters
    ----------
    settings : dict
        The truncation, as its ``to_json`` gives it.
    answer : str
        What the model answered under it.
    seen : (L, P) bool
        Whether a layer took an image token, read off the run's cache.
    """

    settings: Mapping[str, Any]
    answer: str
    seen: npt.NDArray[np.bool_]

    def checked(self, layers: int, tokens: int) -> TruncatedAnswer:
        """Return the same with read-only arrays; InputError if it does not fit a result."""
        seen = np.asarray(self.seen)
        if seen.shape != (layers, tokens) or seen.dtype != np.bool_:
            raise InputError(
                f"truncated.seen must be ({layers}, {tokens}) bool, not {seen.shape} {seen.dtype}"
            )
        if not isinstance(self.answer, str):
            raise InputError(f"truncated.answer must be a text, not {self.answer!r}")
        seen = seen.view()
        seen.setflags(write=False)
        return TruncatedAnswer(dict(self.settings), self.answer, seen)
