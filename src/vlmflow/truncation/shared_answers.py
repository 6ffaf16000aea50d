"""Greedy answers of one prompt under several truncations, with all shared work done once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmflow.errors import ModelError
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.tokens import end_ids, until_end
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.shared_prefill import SharedPrefill
from vlmflow.truncation.side_by_side import Row, batches, can_crop, joined, picked
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


LEAST_DRAFT = 2
"""Tokens of an answer that is not worth a pass of its own to check."""


def shared_answers(
    vlm: LVLM,
    prompt: Prompt,
    policies: Sequence[Truncation],
    *,
    max_new_tokens: int = 64,
) -> list[tuple[int, ...]]:
    """Answer one prompt untouched and under every truncation.

    The answers are those of :meth:`vlmflow.lvlm.model.LVLM.generate_ids`, one call per truncation.
    Picture and prompt are run once (:mod:`vlmflow.truncation.shared_prefill`). The answers are then
    decoded side by side (:mod:`vlmflow.truncation.side_by_side`): one step appends a token to each.
    Keys and values of one batch of answers take at most a quarter of what the model's weights take,
    or 256 MiB where that is more. Where there are several batches, the untouched answer is decoded
    first and put to all truncated models as a whole: as long as all of its tokens are a model's own
    choice, one pass has decoded it (as speculative decoding does, Leviathan et al. 2023; exact for
    greedy decoding). Where a cache or a decoding step holds something that has no rows, answers are
    decoded one by one.

    Parameters
    ----------
    vlm : LVLM
        The model; left exactly as found.
    prompt : Prompt
        A prompt without an answer.
    policies : sequence of P Truncation
        What to remove.
    max_new_tokens : int
        Longest answer.

    Returns
    -------
    list of 1 + P tuple of int
        The untouched answer, then one per policy, without end tokens.

    Raises
    ------
    InputError
        If the prompt carries an answer, or a truncation does not fit it.
    ModelError
        If logits are not finite.
    """
    longest = vlm.room_for_answer(prompt, max_new_tokens)
    if _runs_more(vlm.model.generation_config):
        return [
            vlm.generate_ids(prompt, max_new_tokens=longest, truncation=policy)
            for policy in (None, *policies)
        ]
    model, length = vlm.model, len(prompt.layout)
    ends = end_ids(model, vlm.processor.tokenizer)

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **arguments: Any,
    ) -> list[Tensor]:
        del generation_config  # greedy
        execution = vlm.family.execution(vlm.model.config)
        if policies and model is not vlm.model and not execution.generates_past_forward:
            raise ModelError(
                f"{type(vlm.model).__name__} runs its decoder past its own forward, so a "
                "truncation cannot know where the image tokens are"
            )
        inputs = model.prepare_inputs_for_generation(
            input_ids, is_first_iteration=True, **arguments
        )
        engines: list[Engine] = []
        for policy in policies:
            beside = engines[0] if engines else None
            engines.append(Engine(vlm.model, policy, vlm.family, beside=beside))
        prefill = SharedPrefill(engines, model)
        first, *others = prefill.run(input_ids, inputs).unbind(1)
        rows = [Row(None, inputs["past_key_values"], first)]
        for branch, logits in zip(prefill.branches, others, strict=True):
            rows.append(Row(branch.engine, branch.cache, logits))
            branch.cache = None  # a batch holds its own
        decoder = _Decoder(model, input_ids, arguments, logits_processor, stopping_criteria)
        has_rows = decoder.takes_rows(rows[0].cache)
        together = batches(rows, vlm.model) if has_rows else [[row] for row in rows]
        answers: dict[int, Tensor] = {}
        draft = None
        if len(together) > 1:  # keys and values are large enough for a draft to pay
            answers = dict(enumerate(decoder.go_on(rows[:1])))
            draft = answers[0][0, length:]
            together = batches(rows[1:], vlm.model) if has_rows else together[1:]
        for batch in together:
            numbers = [rows.index(row) for row in batch]
            answers.update(zip(numbers, decoder.go_on(batch, draft), strict=True))
        return [answers[number] for number in range(len(rows))]

    with as_found(model), torch.no_grad():
        sequences = model.generate(
            **prompt.inputs,
            max_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            use_cache=True,  # whatever the model's own settings say: the answer is the same
            custom_generate=decode,
        )
    return [until_end(sequence[0, length:].tolist(), ends) for sequence in sequences]


def _runs_more(config: Any) -> bool:
    """Whether ``generate`` runs or changes something else for every answer: guidance, healing."""
    guidance = getattr(config, "guidance_scale", None)
    return guidance not in (None, 1) or bool(getattr(config, "token_healing", False))


class _Decoder:
    """Greedy decoding from a cached prompt, (1, N), with what ``generate`` has prepared."""

    def __init__(
        self, model: Any, prompt: Tensor, arguments: dict[str, Any], processor: Any, stopping: Any
    ) -> None:
        self.model, self.prompt, self.arguments = model, prompt, arguments
        self.processor, self.stopping = processor, stopping

    def takes_rows(self, cache: Any) -> bool:
        """Whether one step can be run for several rows, given the cached prompt."""
        ids = nn.functional.pad(self.prompt, (0, 1))
        arguments = self._counted(self.arguments, cache, 1)
        return _of_rows(self._inputs(ids, arguments, 1), ids[:, -1:].expand(2, 1)) is not None

    def go_on(self, rows: Sequence[Row], draft: Tensor | None = None) -> list[Tensor]:
        """Return prompt and answer of each row, (1, N + T), all of them decoded together.

        ``draft``, (D,), is an answer that may be the right one.
        """
        cache = joined([row.cache for row in rows])
        for row in rows:
            row.cache = None  # or its keys would be held twice
        ids = self.prompt.expand(len(rows), -1)
        ids = self._append(ids, torch.cat([row.logits for row in rows]))
        engine = next((row.engine for row in rows if row.engine is not None), None)
        with nullcontext() if engine is None else engine.attached():
            if draft is None or len(draft) <= LEAST_DRAFT or not can_crop(cache):
                return self._decode(ids, cache)
            if engine is not None:
                engine.generate.prompt_end = self.prompt.shape[1]  # the draft is not the prompt's
            return self._check(ids, cache, draft)

    def _check(self, ids: Tensor, cache: Any, draft: Tensor) -> list[Tensor]:
        """Follow the draft for as long as each row, (B, N + 1), agrees; then decode.

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
            together = self._append(together, logits.masked_fill(over[:, None], 0))
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
        """Run all of a draft but its last token: logits after each, (B, vocabulary)."""
        length = len(draft) - 1  # nothing follows the last token
        arguments = self._counted(self.arguments, cache, length)
        ids = torch.cat([self.prompt, draft[None, :length]], dim=1)
        inputs = _of_rows(
            self._inputs(ids, arguments, length), draft[None, :length].expand(rows, -1)
        )
        assert inputs is not None, "takes_rows has seen a step"
        given = {**inputs, "logits_to_keep": length}
        logits: Tensor = self.model(**given, return_dict=True).logits
        return logits.unbind(1)

    def _decode(self, ids: Tensor, cache: Any) -> list[Tensor]:
        """Append tokens to rows, (B, N + T), until each has ended."""
        answers: dict[int, Tensor] = {}
        going = list(range(len(ids)))
        arguments = self._counted(self.arguments, cache, ids.shape[1] - self.prompt.shape[1] - 1)
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
                going, ids = [going[place] for place in left], ids[index]
                cache.reorder_cache(index)
            arguments = self._counted(arguments, cache, 1)
            inputs = _of_rows(self._inputs(ids[:1], arguments, 1), ids[:, -1:])
            assert inputs is not None, "takes_rows has seen a step"
            logits = self.model(**inputs, return_dict=True).logits[:, -1]
            # What would follow an end does not matter, and need not be a number.
            over = torch.tensor([number in answers for number in going], device=logits.device)
            ids = self._append(ids, logits.masked_fill(over[:, None], 0))

    def _inputs(self, ids: Tensor, arguments: dict[str, Any], length: int) -> dict[str, Any]:
        inputs: dict[str, Any] = self.model.prepare_inputs_for_generation(
            ids, next_sequence_length=length, **arguments
        )
        return inputs

    def _append(self, ids: Tensor, logits: Tensor) -> Tensor:
        logits = logits.to(ids.device, torch.float32, copy=True)
        if not bool(logits.isfinite().all()):
            raise ModelError("the logits are not finite; load the model in float32 or bfloat16")
        if self.processor:  # row by row: some were made for this one prompt
            each = (slice(row, row + 1) for row in range(len(ids)))
            logits = torch.cat([self.processor(ids[row], logits[row]) for row in each])
        return torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)

    def _counted(self, arguments: dict[str, Any], cache: Any, tokens: int) -> dict[str, Any]:
        """Return what the next call is given after so many more tokens."""
        arguments, output = dict(arguments), CausalLMOutputWithPast(past_key_values=cache)
        for _ in range(tokens):
            arguments |= self.model._update_model_kwargs_for_generation(output, arguments)
        return arguments


def _of_rows(inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any] | None:
    """Give every row of ``tokens``, (B, T), what one row's step is called with.

    None where something is not per row.
    """
    rows, given = len(tokens), dict(inputs)
    if rows == 1:
        return given
    if not isinstance(given.get("input_ids"), Tensor):
        return None
    for name, value in inputs.items():
        if name == "input_ids":
            given[name] = tokens
        elif name == "position_ids" and isinstance(value, Tensor) and value.ndim > 1:
            given[name] = value.expand(*value.shape[:-2], rows, -1)  # (..., 1, 1): axes come first
        elif isinstance(value, Tensor):
            if value.ndim < 2 or len(value) != 1:
                return None
            given[name] = value.expand(rows, *value.shape[1:])
        elif isinstance(value, (dict, list, tuple)) and value:
            return None
    return given
