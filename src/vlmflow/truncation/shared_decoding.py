"""Greedy decoding of many answers at once, from prompts that several truncations have cached."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmflow.errors import ModelError
from vlmflow.truncation.side_by_side import CachedPrompts, can_crop, joined, picked

LEAST_DRAFT = 2
"""Tokens of an answer that is not worth a pass of its own to check."""


@dataclass(frozen=True, eq=False)
class SharedDecoding:
    """Greedy decoding of B cached prompts with what ``generate`` has prepared.

    The answers of a batch are its rows: of each truncation those of all prompts, so that row r
    belongs to prompt r % B.
    """

    model: Any
    prompts: Tensor  # (B, N) int64, padded on the left
    padding: Sequence[int]  # Tokens of each that are none
    arguments: dict[str, Any]  # Of the first call
    processors: Sequence[Any]  # Of the logits: of each prompt its own, made for it alone
    stopping: Any
    of_pictures: Collection[str]  # Arguments of which only the first call reads something

    def takes_rows(self, cache: Any) -> bool:
        """Whether one step can be run for several answers of each cached prompt."""
        ids = nn.functional.pad(self.prompts, (0, 1))
        inputs = self._inputs(ids, self._counted(self.arguments, cache, 1), 1)
        tokens = ids[:, -1:].repeat(2, 1)
        return self._of_rows(inputs, tokens, self._prompts_of(len(tokens))) is not None

    def go_on(self, parts: Sequence[CachedPrompts], draft: Tensor | None = None) -> list[Tensor]:
        """Return prompt and answer of each row, (1, N + T), all of them decoded together.

        ``draft``, (D,), is an answer of a single prompt that may be the right one.
        """
        cache = joined([part.cache for part in parts])
        for part in parts:
            part.cache = None  # or its keys would be held twice
        ids = self.prompts.repeat(len(parts), 1)
        prompts = self._prompts_of(len(ids))
        ids = self._append(ids, torch.cat([part.logits for part in parts]), prompts)
        engine = next((part.engine for part in parts if part.engine is not None), None)
        with nullcontext() if engine is None else engine.attached():
            if draft is None or len(draft) <= LEAST_DRAFT or not can_crop(cache):
                return self._decode(ids, cache)
            if engine is not None:
                engine.generate.prompt_end = self.prompts.shape[1]  # the draft is not the prompt's
            return self._check(ids, cache, draft)

    def _prompts_of(self, rows: int) -> Tensor:
        """Say which prompt each row of a whole batch belongs to: (R,) int64."""
        return torch.arange(rows, device=self.prompts.device) % len(self.prompts)

    def _check(self, ids: Tensor, cache: Any, draft: Tensor) -> list[Tensor]:
        """Follow the draft for as long as each row, (R, N + 1), agrees; then decode.

        One pass over all of the draft says for how long that is.
        """
        said = {row: ids[row : row + 1] for row in range(len(ids))}
        ended, first = self.stopping(ids, None).tolist(), ids[:, -1].tolist()
        words = draft.tolist()
        alike = [row for row in said if not ended[row] and first[row] == words[0]]
        # Rows by the number of the draft's tokens that they follow.
        left = {0: [row for row in said if not ended[row] and first[row] != words[0]]}
        own = cache if len(alike) in (0, len(said)) else picked(cache, alike)
        together, going = ids[alike], list(alike)
        for step, logits in enumerate(self._follow(draft, len(alike), own) if alike else (), 1):
            over = torch.tensor([row not in going for row in alike], device=logits.device)
            logits = logits.masked_fill(over[:, None], 0)
            together = self._append(together, logits, self._prompts_of(len(together)))
            ended, last = self.stopping(together, None).tolist(), together[:, -1].tolist()
            for place, row in enumerate(alike):
                if row not in going:
                    continue
                said[row] = together[place : place + 1]
                if ended[place]:
                    going.remove(row)
                elif last[place] != words[step] or step + 1 == len(words):
                    going.remove(row)
                    left.setdefault(step, []).append(row)
            if not going:
                break
        for followed, rows in left.items():
            if not rows:
                continue
            source, places = (
                (own, [alike.index(row) for row in rows]) if followed else (cache, rows)
            )
            kept = picked(source, places)
            if 0 < followed < len(words) - 1:
                kept.crop(followed + 1 - len(words))
            said.update(
                zip(rows, self._decode(torch.cat([said[row] for row in rows]), kept), strict=True)
            )
        return list(said.values())

    def _follow(self, draft: Tensor, rows: int, cache: Any) -> Sequence[Tensor]:
        """Run all of a draft but its last token: logits after each, (R, vocabulary)."""
        length = len(draft) - 1  # nothing follows the last token
        arguments = self._counted(self.arguments, cache, length)
        ids = torch.cat([self.prompts, draft[None, :length]], dim=1)
        tokens = draft[None, :length].expand(rows, -1)
        inputs = self._of_rows(self._inputs(ids, arguments, length), tokens, self._prompts_of(rows))
        assert inputs is not None, "takes_rows has seen a step"
        given = {**inputs, "logits_to_keep": length}
        logits: Tensor = self.model(**given, return_dict=True).logits
        return logits.unbind(1)

    def _decode(self, ids: Tensor, cache: Any) -> list[Tensor]:
        """Append tokens to rows, (R, N + T), until each has ended."""
        answers: dict[int, Tensor] = {}
        going, length = list(range(len(ids))), self.prompts.shape[1]
        prompts = self._prompts_of(len(ids))
        arguments = self._counted(self.arguments, cache, ids.shape[1] - length - 1)
        while True:
            ended = self.stopping(ids, None).tolist()
            answers.update({
                number: row[None]
                for number, row, end in zip(going, ids, ended, strict=True)
                if end and number not in answers
            })  # fmt: skip
            left = [place for place, number in enumerate(going) if number not in answers]
            if not left:
                return [answers[number] for number in sorted(answers)]
            if 2 * len(left) <= len(going):  # fewer times than a row ends: caches are copied
                index = torch.tensor(left, device=ids.device)
                going, ids, prompts = [going[place] for place in left], ids[index], prompts[index]
                cache.reorder_cache(index)
            arguments = self._counted(arguments, cache, 1)
            # Of each prompt one row says what goes with its next token; which token, all of them.
            spoken = ids[:1, length:].expand(len(self.prompts), -1)
            of_prompts = self._inputs(torch.cat([self.prompts, spoken], dim=1), arguments, 1)
            inputs = self._of_rows(of_prompts, ids[:, -1:], prompts)
            assert inputs is not None, "takes_rows has seen a step"
            logits = self.model(**inputs, return_dict=True).logits[:, -1]
            # What would follow an end does not matter, and need not be a number.
            over = torch.tensor([number in answers for number in going], device=logits.device)
            ids = self._append(ids, logits.masked_fill(over[:, None], 0), prompts)

    def _inputs(self, ids: Tensor, arguments: dict[str, Any], length: int) -> dict[str, Any]:
        inputs: dict[str, Any] = self.model.prepare_inputs_for_generation(
            ids, next_sequence_length=length, **arguments
        )
        return inputs

    def _append(self, ids: Tensor, logits: Tensor, prompts: Tensor) -> Tensor:
        logits = logits.to(ids.device, torch.float32, copy=True)
        if not bool(logits.isfinite().all()):
            raise ModelError("the logits are not finite; load the model in float32 or bfloat16")
        if any(self.processors):
            logits = torch.cat([
                self._processed(ids[row : row + 1], logits[row : row + 1], prompt)
                for row, prompt in enumerate(prompts.tolist())
            ])  # fmt: skip
        return torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)

    def _processed(self, ids: Tensor, logits: Tensor, prompt: int) -> Tensor:
        """Process one row's logits, (1, vocabulary), as if its prompt were alone."""
        processed: Tensor = self.processors[prompt](ids[:, self.padding[prompt] :], logits)
        return processed

    def _counted(self, arguments: dict[str, Any], cache: Any, tokens: int) -> dict[str, Any]:
        """Return what the next call is given after so many more tokens."""
        arguments, output = dict(arguments), CausalLMOutputWithPast(past_key_values=cache)
        for _ in range(tokens):
            arguments |= self.model._update_model_kwargs_for_generation(output, arguments)
        return arguments

    def _of_rows(
        self, inputs: dict[str, Any], tokens: Tensor, prompts: Tensor
    ) -> dict[str, Any] | None:
        """Give every row of ``tokens``, (R, T), what the step of its prompt is called with.

        ``inputs`` are those of all prompts, and ``prompts``, (R,), says which is each row's. None
        where something is not per prompt.
        """
        given, count = dict(inputs), len(self.prompts)
        if count == len(tokens) == 1:
            return given
        if not isinstance(given.get("input_ids"), Tensor):
            return None
        for name, value in inputs.items():
            if name == "input_ids":
                given[name] = tokens
            elif isinstance(value, Tensor):
                # Of position_ids, (..., B, T), axes come first
                axis = value.ndim - 2 if name == "position_ids" else 0
                if value.ndim < 2 or value.shape[axis] not in (1, count):
                    if name in self.of_pictures:
                        continue
                    return None
                if value.shape[axis] == 1:
                    shape = [*value.shape[:axis], len(tokens), *value.shape[axis + 1 :]]
                    given[name] = value.expand(shape)
                else:
                    given[name] = value.index_select(axis, prompts.to(value.device))
            elif isinstance(value, (dict, list, tuple)) and value:
                return None
        return given
