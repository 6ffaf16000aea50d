"""Greedy answers of one prompt under several truncations, with all shared work done once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmflow.errors import ModelError
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.tokens import end_ids, until_end
from vlmflow.truncation.cache import TruncatedLayer
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.shared_prefill import SharedPrefill
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


def shared_answers(
    vlm: LVLM,
    prompt: Prompt,
    policies: Sequence[Truncation],
    *,
    max_new_tokens: int = 64,
) -> list[tuple[int, ...]]:
    """Answer one prompt untouched and under every truncation.

    The answers are those of :meth:`vlmflow.lvlm.model.LVLM.generate_ids`, one call per truncation.
    Picture and prompt are run once (:mod:`vlmflow.truncation.shared_prefill`). Each truncated
    model then checks the untouched answer as a whole: where all of its tokens are the model's own
    choice, one pass has decoded it; from the first other choice on, decoding goes token by token
    (as speculative decoding does, Leviathan et al. 2023; exact for greedy decoding).

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
    room = vlm.room_for_answer(prompt, max_new_tokens)
    if _runs_more(vlm.model.generation_config):
        return [
            vlm.generate_ids(prompt, max_new_tokens=room, truncation=policy)
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
        engines = [Engine(vlm.model, policy, vlm.family) for policy in policies]
        prefill = SharedPrefill(engines, model)
        first, *others = prefill.run(input_ids, inputs).unbind(1)
        decoder = _Decoder(model, input_ids, arguments, logits_processor, stopping_criteria)
        own = decoder.go_on(first, inputs["past_key_values"])
        draft = own[0, length:]
        answers = [own]
        for branch, logits in zip(prefill.branches, others, strict=True):
            with branch.engine.attached():
                branch.engine.generate.prompt_end = length  # the draft is not the prompt's
                answers.append(decoder.go_on(logits, branch.cache, draft))
        return answers

    with as_found(model), torch.no_grad():
        sequences = model.generate(
            **prompt.inputs,
            max_new_tokens=room,
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

    def go_on(self, logits: Tensor, cache: Any, draft: Tensor | None = None) -> Tensor:
        """Return prompt and answer, (1, N + T).

        ``logits``, (1, vocabulary), are those after the prompt, which ``cache`` holds; ``draft``,
        (D,), is an answer that may be the right one.
        """
        ids = self._append(self.prompt, logits)
        if draft is not None and len(draft) > 2 and _can_crop(cache):
            ids = self._check(ids, draft, cache)
        arguments = self._counted(self.arguments, cache, ids.shape[1] - self.prompt.shape[1] - 1)
        while not bool(self.stopping(ids, None).all()):
            arguments = self._counted(arguments, cache, 1)
            inputs = self.model.prepare_inputs_for_generation(
                ids, next_sequence_length=1, **arguments
            )
            ids = self._append(ids, self.model(**inputs, return_dict=True).logits[:, -1])
        return ids

    def _check(self, ids: Tensor, draft: Tensor, cache: Any) -> Tensor:
        """Follow the draft for as long as the model agrees, in one pass over all of it."""
        if int(ids[0, -1]) != int(draft[0]) or bool(self.stopping(ids, None).all()):
            return ids
        length = len(draft) - 1  # nothing follows the last token
        inputs = self.model.prepare_inputs_for_generation(
            torch.cat([self.prompt, draft[None, :length]], dim=1),
            next_sequence_length=length,
            **self._counted(self.arguments, cache, length),
        )
        logits = self.model(**{**inputs, "logits_to_keep": length}, return_dict=True).logits
        for step in range(length):
            ids = self._append(ids, logits[:, step])
            agreed = int(ids[0, -1]) == int(draft[step + 1])
            if not agreed or bool(self.stopping(ids, None).all()):
                cache.crop(step + 1 - length)
                return ids
        return ids

    def _append(self, ids: Tensor, logits: Tensor) -> Tensor:
        logits = logits.to(ids.device, torch.float32, copy=True)
        if not bool(logits.isfinite().all()):
            raise ModelError("the logits are not finite; load the model in float32 or bfloat16")
        best = self.processor(ids, logits).argmax(-1, keepdim=True)
        return torch.cat([ids, best], dim=1)

    def _counted(self, arguments: dict[str, Any], cache: Any, tokens: int) -> dict[str, Any]:
        """Return what the next call is given after so many more tokens."""
        arguments = dict(arguments)
        output = CausalLMOutputWithPast(past_key_values=cache)
        for _ in range(tokens):
            arguments.update(self.model._update_model_kwargs_for_generation(output, arguments))
        return arguments


def _can_crop(cache: Any) -> bool:
    """Whether tokens can be taken back: no layer has a state or a window."""
    return all(
        type(layer) is DynamicLayer or (isinstance(layer, TruncatedLayer) and layer.window is None)
        for layer in cache.layers
    )
