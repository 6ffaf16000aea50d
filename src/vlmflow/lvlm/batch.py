"""Several prompts of different lengths in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from vlmflow.errors import InputError
from vlmflow.lvlm.evaluating import evaluating
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import end_ids

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM, Truncating


def collate(
    prompts: Sequence[Prompt], pad_token_id: int
) -> tuple[dict[str, torch.Tensor], list[TokenLayout]]:
    """Make one left-padded batch of several prompts.

    Parameters
    ----------
    prompts : sequence of B Prompt
        Prompts of one model.
    pad_token_id : int
        What ``input_ids`` are filled up with; the attention mask hides it.

    Returns
    -------
    inputs : dict of str to tensor
        Per-token inputs are ``(B, N)`` with ``N`` the longest prompt; others (``pixel_values``) are
        concatenated along their first axis, and filled up with zeros at the end of the
        others where pictures differ in size or in tiles, as processors do within one prompt.
    layouts : list of B TokenLayout
        Shifted to where each prompt stands in its row.

    Raises
    ------
    InputError
        If there is nothing to collate, or videos that a model wants to be alike are not.
    """
    if not prompts:
        raise InputError("there are no prompts to put into a batch")
    total = max(len(prompt.layout) for prompt in prompts)
    inputs = {}
    # A prompt without a picture, or without a video, holds nothing of theirs.
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.inputs):
        holders = [prompt.inputs for prompt in prompts if name in prompt.inputs]
        tensors = [holder[name] for holder in holders]
        if tensors[0].shape == holders[0]["input_ids"].shape:
            fill = pad_token_id if name == "input_ids" else 0
            tensors = [
                torch.nn.functional.pad(tensor, (total - tensor.shape[1], 0), value=fill)
                for tensor in tensors
            ]
        elif name == "pixel_values_videos" and len({tensor.shape[1:] for tensor in tensors}) > 1:
            raise InputError(
                "the videos of a batch have different numbers of frames, which this model cannot "
                "stack: ask one by one"
            )
        inputs[name] = torch.cat(_same_size(tensors))
    layouts = [prompt.layout.shifted(total - len(prompt.layout), total) for prompt in prompts]
    return inputs, layouts


def _same_size(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fill tensors up with zeros at the end of every axis but the first."""
    largest = [max(sides) for sides in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return [
        torch.nn.functional.pad(
            tensor,
            [
                width
                for side, longest in zip(reversed(tensor.shape[1:]), reversed(largest), strict=True)
                for width in (0, longest - side)
            ],
        )
        for tensor in tensors
    ]


def generate_batch(
    vlm: LVLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    truncation: Truncating | None = None,
) -> list[tuple[int, ...]]:
    """Let a model answer several prompts greedily in one left-padded batch.

    Parameters
    ----------
    vlm : LVLM
        The model.
    prompts : sequence of Prompt
        Prompts without answers.
    max_new_tokens, truncation
        As for :meth:`vlmflow.lvlm.model.LVLM.generate_ids`.

    Returns
    -------
    list of tuple of int
        Each answer without its end token; empty where the model ends at once.
    """
    tokenizer = vlm.processor.tokenizer
    inputs, _ = collate(prompts, pad_id(tokenizer))
    ends = end_ids(vlm.model, tokenizer)
    block = nullcontext() if truncation is None else truncation(vlm.model)
    with evaluating(vlm.model), torch.no_grad(), block:
        sequences = vlm.model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )
    answers = []
    for row in sequences[:, inputs["input_ids"].shape[1] :].tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), len(row))
        answers.append(tuple(row[:stop]))
    return answers


def pad_id(tokenizer: Any) -> int:
    """Return what rows are filled up with; the attention mask hides it."""
    token = tokenizer.pad_token_id
    return 0 if token is None else int(token)
