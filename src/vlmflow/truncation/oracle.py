"""Maps for oracle rankings: the untouched model measured for its own first answer token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmflow.errors import InputError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.truncation.forward_call import ForwardCall

_NOT_FOR_MEASURING = ("past_key_values", "use_cache", "logits_to_keep", "labels", "return_dict")


def first_token_maps(
    model: nn.Module, layers: nn.ModuleList, call: ForwardCall, signal: str | Signal
) -> list[Tensor]:
    """Measure each prompt of a call with the token that the model would answer first.

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
    ids, is_image = call.ids, call.is_image
    valid = torch.ones_like(is_image) if call.valid is None else call.valid
    if not bool(valid[:, -1].all()):
        raise InputError(
            "an oracle ranking reads the next token at the end of each prompt; pad on the left"
        )
    inputs = {
        name: value
        for name, value in call.arguments.items()
        if value is not None and name not in _NOT_FOR_MEASURING
    }
    with torch.no_grad():
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
    token = logits[:, -1].argmax(-1, keepdim=True).to(ids.device)
    for name, value in inputs.items():
        per_token = isinstance(value, Tensor) and value.shape[-1] == ids.shape[1]
        if per_token and not name.startswith("pixel_values"):
            new = torch.zeros_like(value[..., -1:])
            if name == "input_ids":
                new = token
            elif name == "attention_mask":
                new = torch.ones_like(new)
            elif name == "position_ids":
                new = value[..., -1:] + 1
            inputs[name] = torch.cat([value, new.to(value)], dim=-1)
    layouts = [
        _layout(valid[row].cpu().numpy(), is_image[row].cpu().numpy()) for row in range(len(ids))
    ]
    options = ExplainOptions(signals=(signal,), per_token=False)
    maps = []
    for row, measurement in enumerate(measure(model, layers, inputs, layouts, options)):
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
