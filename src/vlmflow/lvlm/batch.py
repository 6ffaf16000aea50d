"""Several prompts of different lengths in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlmflow.errors import InputError
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.lvlm.prepared import Prepared


def collate(
    prepared: Sequence[Prepared], pad_token_id: int
) -> tuple[dict[str, torch.Tensor], list[TokenLayout]]:
    """Make one left-padded batch of several prompts.

    Parameters
    ----------
    prepared : sequence of B Prepared
        Prompts of one model.
    pad_token_id : int
        What ``input_ids`` are filled up with; the attention mask hides it.

    Returns
    -------
    inputs : dict of str to tensor
        Per-token inputs are ``(B, N)`` with ``N`` the longest prompt; others (``pixel_values``) are
        put behind each other along their first axis.
    layouts : list of B TokenLayout
        Shifted to where each prompt stands in its row.

    Raises
    ------
    InputError
        If there is nothing to collate.
    """
    if not prepared:
        raise InputError("there are no prompts to put into a batch")
    total = max(len(one.layout) for one in prepared)
    inputs = {}
    for name, first in prepared[0].inputs.items():
        tensors = [one.inputs[name] for one in prepared]
        if first.shape == prepared[0].inputs["input_ids"].shape:
            fill = pad_token_id if name == "input_ids" else 0
            tensors = [
                torch.nn.functional.pad(tensor, (total - tensor.shape[1], 0), value=fill)
                for tensor in tensors
            ]
        inputs[name] = torch.cat(tensors)
    layouts = [one.layout.shifted(total - len(one.layout), total) for one in prepared]
    return inputs, layouts
