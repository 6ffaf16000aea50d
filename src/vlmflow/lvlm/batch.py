"""Several prompts of different lengths in one batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from vlmflow.errors import InputError
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.lvlm.prompt import Prompt

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


def in_groups(
    prompts: Sequence[Prompt],
    keys: Sequence[_Key],
    work: Callable[[list[Prompt], _Key], Sequence[_Result]],
) -> list[_Result]:
    """Do work on the prompts of each key together; results come in the order of the prompts."""
    places: dict[_Key, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    results: dict[int, _Result] = {}
    for key, own in places.items():
        results.update(zip(own, work([prompts[place] for place in own], key), strict=True))
    return [results[place] for place in range(len(prompts))]


def collate(
    prompts: Sequence[Prompt], pad_token_id: int
) -> tuple[dict[str, torch.Tensor], list[TokenLayout]]:
    """Make one left-padded batch of several prompts of one model.

    Per-token inputs become ``(B, N)`` with ``N`` the longest prompt, ``input_ids`` filled up with
    ``pad_token_id``. Others (``pixel_values``) are concatenated along their first axis, and filled
    up with zeros at the end of the others where pictures differ in size or in tiles, as processors
    do within one prompt. Layouts are shifted to where each prompt stands in its row.

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


def pad_id(tokenizer: Any) -> int:
    """Return what rows are filled up with; the attention mask hides it."""
    token = tokenizer.pad_token_id
    return 0 if token is None else int(token)
