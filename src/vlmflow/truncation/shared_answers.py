"""Greedy answers of prompts under several truncations, with all shared work done once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmflow.errors import ModelError
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.batch import collate, in_groups, pad_id
from vlmflow.lvlm.tokens import end_ids, until_end
from vlmflow.truncation.engine import Engine
from vlmflow.truncation.shared_decoding import SharedDecoding
from vlmflow.truncation.shared_prefill import SharedPrefill
from vlmflow.truncation.side_by_side import CachedPrompts, batches, room_for_keys
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

Answers = list[tuple[int, ...]]
"""Of one prompt: the untouched answer, then one per policy, without end tokens."""


def shared_answers(
    vlm: LVLM,
    prompts: Sequence[Prompt],
    policies: Sequence[Truncation],
    *,
    max_new_tokens: int = 64,
) -> list[Answers]:
    """Answer each prompt untouched and under every truncation.

    The answers are those of :meth:`vlmflow.lvlm.model.LVLM.generate_ids`, one call per prompt and
    truncation. Pictures and prompts are run once (:mod:`vlmflow.truncation.shared_prefill`), those
    of several prompts in one padded batch. The answers are then decoded side by side
    (:mod:`vlmflow.truncation.side_by_side`): one step appends a token to each. Keys and values of
    the prompts in one batch take at most a quarter of what the model's weights take, or 256 MiB
    where that is more; the answers' own come to it. Several prompts are answered together only
    where all of their answers fit into one batch. Where those of a single prompt do not, the
    untouched answer is decoded first and put to all truncated models as a whole: as long as all of
    its tokens are a model's own choice, one pass has decoded it (as speculative decoding does,
    Leviathan et al. 2023; exact for greedy decoding). Where a cache or a decoding step holds
    something that has no rows, answers are decoded one by one.

    Parameters
    ----------
    vlm : LVLM
        The model; left exactly as found.
    prompts : sequence of Prompt
        Prompts without answers.
    policies : sequence of P Truncation
        What to remove.
    max_new_tokens : int
        Longest answer.

    Returns
    -------
    list of list of 1 + P tuple of int
        Of each prompt, the untouched answer, then one per policy, without end tokens.

    Raises
    ------
    InputError
        If a prompt carries an answer, or a truncation does not fit it.
    ModelError
        If logits are not finite.
    """
    rooms = [vlm.room_for_answer(prompt, max_new_tokens) for prompt in prompts]

    def answered(group: list[Prompt], longest: int) -> list[Answers]:
        if _runs_more(vlm.model.generation_config):
            return [
                [
                    vlm.generate_ids(prompt, max_new_tokens=longest, truncation=policy)
                    for policy in (None, *policies)
                ]
                for prompt in group
            ]
        count = _at_once(vlm, group, 1 + len(policies))
        answers: list[Answers] = []
        for start in range(0, len(group), count):
            part = group[start : start + count]
            together = _together(vlm, part, policies, longest)
            if together is None:
                parts = [_together(vlm, [prompt], policies, longest) for prompt in part]
                together = [own for alone in parts for own in alone or ()]
            answers += together
        return answers

    return in_groups(prompts, rooms, answered)


def _runs_more(config: Any) -> bool:
    """Whether ``generate`` runs or changes something else for every answer: guidance, healing."""
    guidance = getattr(config, "guidance_scale", None)
    return guidance not in (None, 1) or bool(getattr(config, "token_healing", False))


def _at_once(vlm: LVLM, prompts: Sequence[Prompt], answers: int) -> int:
    """Say of how many prompts all ``answers`` of each fit into one batch."""
    config = vlm.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # no keys of a known size
        return 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    values = 2 * (getattr(config, "num_key_value_heads", None) or heads) * width
    tokens = max(len(prompt.layout) for prompt in prompts) * vlm.num_layers
    taken = answers * tokens * values * vlm.model.dtype.itemsize
    return int(max(1, room_for_keys(vlm.model) // taken))


def _together(
    vlm: LVLM, prompts: Sequence[Prompt], policies: Sequence[Truncation], longest: int
) -> list[Answers] | None:
    """Answer prompts in one batch; None where several cannot be decoded together."""
    tokenizer = vlm.processor.tokenizer
    given, _ = collate(prompts, pad_id(tokenizer))
    shape = given["input_ids"].shape
    padding = [shape[1] - len(prompt.layout) for prompt in prompts]
    of_pictures = {name for name, value in given.items() if value.shape != shape}

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **arguments: Any,
    ) -> list[Tensor] | None:
        del generation_config  # greedy
        execution = vlm.family.execution(vlm.model.config)
        if policies and model is not vlm.model and not execution.generates_past_forward:
            raise ModelError(
                f"{type(vlm.model).__name__} runs its decoder past its own forward, so a "
                "truncation cannot know where the image tokens are"
            )
        processors = [logits_processor]
        if len(prompts) > 1:  # each row is processed as if its prompt were alone
            made = logits_processor and [_processors(vlm, prompt, longest) for prompt in prompts]
            processors = made or [()] * len(prompts)
        parts = _cached(vlm, model, input_ids, arguments, policies)
        decoding = SharedDecoding(
            model, input_ids, padding, arguments, processors, stopping_criteria, of_pictures
        )
        has_rows = decoding.takes_rows(parts[0].cache)
        if len(prompts) > 1 and not has_rows:
            return None
        together = batches(parts, vlm.model) if has_rows else [[part] for part in parts]
        answers: dict[int, Sequence[Tensor]] = {}
        draft = None
        if len(together) > 1 and len(prompts) == 1:
            # Keys and values are large enough for a draft to pay.
            answers[0] = decoding.go_on(parts[:1])
            draft = answers[0][0][0, input_ids.shape[1] :]
            together = batches(parts[1:], vlm.model) if has_rows else together[1:]
        for batch in together:
            decoded = decoding.go_on(batch, draft)
            for place, part in enumerate(batch):
                start = place * len(prompts)
                answers[parts.index(part)] = decoded[start : start + len(prompts)]
        return [answers[number][row] for row in range(len(prompts)) for number in range(len(parts))]

    with as_found(vlm.model), torch.no_grad():
        sequences = _generate(vlm, given, longest, decode)
    if sequences is None:
        return None
    ends, start = end_ids(vlm.model, tokenizer), given["input_ids"].shape[1]
    answers = [until_end(sequence[0, start:].tolist(), ends) for sequence in sequences]
    count = 1 + len(policies)
    return [answers[place : place + count] for place in range(0, len(answers), count)]


def _cached(
    vlm: LVLM,
    model: Any,
    input_ids: Tensor,
    arguments: Mapping[str, Any],
    policies: Sequence[Truncation],
) -> list[CachedPrompts]:
    """Prefill prompts, (B, N): untouched first, then under every truncation."""
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **arguments)
    mask = arguments.get("attention_mask")
    engines: list[Engine] = []
    for policy in policies:
        beside = engines[0] if engines else None
        engines.append(Engine(vlm.model, policy, vlm.family, beside=beside))
        if isinstance(mask, Tensor) and mask.ndim == 2:
            engines[-1].generate.padding = mask  # with a static cache the model gets another
    prefill = SharedPrefill(engines, model)
    first, *others = prefill.run(input_ids, inputs).unbind(1)
    parts = [CachedPrompts(None, inputs["past_key_values"], first)]
    for branch, logits in zip(prefill.branches, others, strict=True):
        parts.append(CachedPrompts(branch.engine, branch.cache, logits))
    return parts


def _generate(vlm: LVLM, inputs: Any, longest: int, decode: Any) -> Any:
    """Have ``generate`` prepare everything for a greedy answer, and decode it by ``decode``."""
    return vlm.model.generate(
        **inputs,
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,  # whatever the model's own settings say: the answer is the same
        custom_generate=decode,
    )


def _processors(vlm: LVLM, prompt: Prompt, longest: int) -> Any:
    """Say what would process the logits of a prompt that comes alone."""

    def tell(*_args: Any, logits_processor: Any, **_kwargs: Any) -> Any:
        return logits_processor

    inputs = prompt.inputs
    if not vlm.family.execution(vlm.model.config).generates_past_forward:
        # Else ``generate`` would encode the pictures, of which nobody reads anything here.
        inputs = {name: inputs[name] for name in inputs if not name.startswith("pixel_values")}
    return _generate(vlm, inputs, longest, tell)
