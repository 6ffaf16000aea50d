"""How a task wants its answers generated, and where they end."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from vlmflow.errors import InputError, Note
from vlmflow.lvlm.tokens import special_tokens, until_end
from vlmflow.parameters import check_integer

LONGEST = 1024
"""Tokens of an answer where a task does not say: as lmms-eval's own model of LLaVA."""

READ = ("until", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams")


@dataclass(frozen=True)
class Generation:
    """A task's ``generation_kwargs``.

    Parameters
    ----------
    until : tuple of str
        Where an answer is cut off: before the first of these that it holds.
    max_new_tokens : int
        Longest answer.
    options : mapping
        More of what ``model.generate`` takes: beams, and sampling where ``temperature`` is above 0.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    options: Mapping[str, Any]

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Generation:
        """Read them from a request of lmms-eval.

        A setting of other models (``image_aspect_ratio``) is named in a warning and left out.

        Raises
        ------
        InputError
            For a value that is impossible.
        """
        unknown = [name for name in settings if name not in READ]
        if unknown:
            warnings.warn(
                f"generation_kwargs of the task are left out, for they are other models': "
                f"{', '.join(map(repr, unknown))}",
                Note,
                stacklevel=2,
            )
        longest = settings.get("max_new_tokens", LONGEST)
        check_integer("max_new_tokens", longest, least=1)
        beams = settings.get("num_beams") or 1
        check_integer("num_beams", beams, least=1)
        options: dict[str, Any] = {} if beams == 1 else {"num_beams": beams}
        temperature = _number("temperature", settings.get("temperature"))
        if temperature > 0 and settings.get("do_sample") is not False:
            options |= {"do_sample": True, "temperature": temperature}
            more = {name: settings.get(name) for name in ("top_p", "top_k")}
            options |= {name: value for name, value in more.items() if value is not None}
        return cls(_texts(settings.get("until")), longest, options)


class Ends:
    """Where the answers of one task end, in the tokens of one model.

    Parameters
    ----------
    tokenizer
        The model's.
    until : sequence of str
        Texts before which an answer is cut off. One that is a special token ends it where that
        token is generated, for it does not show in the text.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:
        special = special_tokens(tokenizer)
        self.tokenizer = tokenizer
        self.texts = tuple(text for text in until if text not in special)
        self.ids = {int(tokenizer.convert_tokens_to_ids(text)) for text in until if text in special}

    def cut(self, ids: Sequence[int]) -> str:
        """Decode an answer up to its end, without the space around it."""
        text = self._text(ids)
        for end in self.texts:
            text = text.partition(end)[0]
        return text.strip()

    def are_in(self, ids: Sequence[int]) -> bool:
        """Whether an answer has come to its end, so that no further token changes the text."""
        if self.ids and not self.ids.isdisjoint(ids):
            return True
        text = self._text(ids) if self.texts else ""
        return any(end in text for end in self.texts)

    def criteria(self, start: int) -> StoppingCriteriaList | None:
        """Stop rows of a batch whose answers begin at position ``start``; None: nothing to stop.

        transformers' own stop strings look at the end of the prompt, too: a line break there and
        one at the beginning of an answer would end it.
        """
        if not (self.ids or self.texts):
            return None
        return StoppingCriteriaList([_AtEnds(self, start)])

    def _text(self, ids: Sequence[int]) -> str:
        kept = list(until_end(ids, self.ids))
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))


class _AtEnds(StoppingCriteria):
    def __init__(self, ends: Ends, start: int) -> None:
        self.ends, self.start = ends, start

    def __call__(
        self,
        input_ids: torch.Tensor,
        scores: object,  # noqa: ARG002
        **_kwargs: Any,
    ) -> torch.Tensor:
        rows = input_ids[:, self.start :].tolist()
        return torch.tensor([self.ends.are_in(row) for row in rows], device=input_ids.device)


def _texts(until: object) -> tuple[str, ...]:
    listed = [until] if isinstance(until, str) else until or ()
    if not isinstance(listed, Sequence) or not all(isinstance(text, str) for text in listed):
        raise InputError(f"until={until!r} is not a list of texts before which an answer is cut")
    return tuple(dict.fromkeys(text for text in listed if text))


def _number(name: str, value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise InputError(f"{name}={value!r} is not a number from 0 on")
    return float(value)
