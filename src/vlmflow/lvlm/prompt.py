"""One prompt as the model takes it, with the layout of its positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from vlmflow.lvlm.chat import Visual
from vlmflow.lvlm.layout import TokenLayout


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt, ready for the model.

    Parameters
    ----------
    inputs : dict of str to tensor
        Keyword arguments of the model, batch of one, on its device: ``input_ids`` (expanded, one id
        per image token), ``attention_mask``, ``pixel_values``, ...
    layout : TokenLayout
        Segment of every position and box of every image token.
    images : tuple of PIL pictures
        The pictures as they were read (RGB, upright), in the order of the prompt; of a video the
        first of every group of frames that share image tokens (``layout.frames``).
    text : str
        The text given to the processor, one placeholder per picture or video.
    answer : str or None
        Text of the answer that stands at the end of ``inputs``, if there is one.
    lead : str
        White space that this model's chat template puts before an answer.
    visuals : tuple of PIL pictures and Video
        The same as ``images``, videos with every frame that the model is shown.
    """

    inputs: dict[str, torch.Tensor]
    layout: TokenLayout
    images: tuple[Image.Image, ...]
    text: str
    answer: str | None = None
    lead: str = ""
    visuals: tuple[Visual, ...] = ()

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Ids of the answer's tokens, ``(T,)``; empty without an answer."""
        ids = self.inputs["input_ids"][0].tolist()
        return tuple(ids[position] for position in self.layout.answer_positions)


def extended(
    name: str,
    tensor: torch.Tensor,
    ids: Sequence[int],
    input_ids: torch.Tensor,
    fill: Mapping[str, int],
) -> torch.Tensor:
    """Append the answer's entries to a per-token input; leave other inputs as they are.

    What has the shape of the prompt's ``input_ids``, (1, N), is per token. ``fill`` says what
    inputs hold at an answer's tokens, where it is not 0.
    """
    if tensor.shape != input_ids.shape:
        return tensor
    entries = {"input_ids": list(ids), "attention_mask": [1] * len(ids)}
    more = torch.tensor([entries.get(name, [fill.get(name, 0)] * len(ids))], dtype=tensor.dtype)
    return torch.cat([tensor, more.to(tensor.device)], dim=1)
