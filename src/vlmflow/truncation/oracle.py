"""Maps for oracle rankings: the untouched model measured for its own first answer token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.layout import Segment, TokenLayout

_NOT_FOR_MEASURING = ("past_key_values", "use_cache", "logits_to_keep", "labels", "return_dict")


def first_token_maps(
    model: nn.Module,
    layers: nn.ModuleList,
    arguments: Mapping[str, Any],
    valid: Tensor,
    is_image: Tensor,
    signal: str | Signal,
) -> list[Tensor]:
    """Measure each prompt of a batch with the token the model would answer first.

    Parameters
    ----------
    model, layers : nn.Module, nn.ModuleList
        The model and its decoder layers.
    arguments : mapping
        What its forward was called with.
    valid, is_image : (B, N) bool
        Real tokens, and image tokens.
    signal : str or Signal
        What is measured.

    Returns
    -------
    list of B (layers, N)
        The signal's map of every layer on every position, 0 where there is no image token; one
        layer for a signal that sums over layers.

    Raises
    ------
    InputError
        With padding after a prompt: its next token cannot be read off the end.
    """
    if not bool(valid[:, -1].all()):
        raise InputError(
            "an oracle ranking reads the next token at the end of each prompt; pad on the left"
        )
    inputs = {
        name: value
        for name, value in arguments.items()
        if value is not None and name not in _NOT_FOR_MEASURING
    }
    ids: Tensor = inputs["input_ids"]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
    token = logits[:, -1].argmax(-1, keepdim=True).to(ids.device)
    last = {"input_ids": token, "attention_mask": torch.ones_like(token)}
    for name, value in inputs.items():
        of_pixels = name.startswith("pixel_values")
        if isinstance(value, Tensor) and value.shape[-1] == ids.shape[1] and not of_pixels:
            more = (
                value[..., -1:] + 1 if name == "position_ids" else torch.zeros_like(value[..., :1])
            )
            inputs[name] = torch.cat([value, last.get(name, more).to(value)], dim=-1)
    layouts = [
        _layout(valid[row].cpu().numpy(), is_image[row].cpu().numpy()) for row in range(len(ids))
    ]
    options = ExplainOptions(signals=(signal,), per_token=False)
    measured = measure(model, layers, inputs, layouts, options)
    maps = []
    for row, measurement in enumerate(measured):
        (values,) = measurement.maps.values()
        whole = torch.zeros(len(values), ids.shape[1])
        whole[:, is_image[row].cpu()] = torch.from_numpy(values[:, 0])
        maps.append(whole)
    return maps


def _layout(valid: np.ndarray[Any, Any], is_image: np.ndarray[Any, Any]) -> TokenLayout:
    segments = np.full(len(valid) + 1, Segment.USER, dtype=np.int8)
    segments[:-1][~valid] = Segment.PAD
    if is_image.any():
        before = np.arange(len(valid)) < is_image.argmax()
        segments[:-1][before & valid] = Segment.SYSTEM
        segments[:-1][is_image] = Segment.IMAGE
    segments[-1] = Segment.ANSWER
    return TokenLayout(segments, ("",) * len(segments), ())
