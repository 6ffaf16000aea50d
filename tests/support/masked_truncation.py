"""Truncation the slow way for any family: the whole sequence, eager attention, tokens masked away.

Nothing is cached and where there is attention nothing is removed: from a layer on, the tokens that
are gone are hidden from everybody by the layer's own mask. Nothing here uses vlmflow but the
layout.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.support.slow_truncation import choose


def masked_logits(model, layers, prompt, policy, image_token, gone=()):
    """Logits (N, vocabulary) of a prompt with an answer, and for every layer what it sees.

    Without a policy, the positions ``gone`` are hidden from the first layer on.
    """
    images = prompt.layout.image_positions.tolist()
    ids = prompt.inputs["input_ids"][0].clone()
    ids[images] = image_token  # videos have another
    length = len(ids)
    prompt_length = int(prompt.layout.answer_positions[0])
    gone = list(gone)
    seen: list[list[int]] = []
    matrices: dict[int, torch.Tensor] = {}
    handles = []

    def cut(index):
        def hook(_module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            for stage in () if policy is None else policy.stages:
                if stage.layer == index:
                    left = [p for p in images if p not in gone]
                    keep = stage.keep.of(len(images))
                    matrix = matrices.get(index - 1)
                    kept = choose(
                        policy.ranking.known_as(), left, keep, hidden[0], matrix, None, None, None,
                        prompt_length, ids, image_token,
                    )  # fmt: skip
                    gone.extend(p for p in left if p not in kept)
            seen.append([p for p in range(length) if p not in gone])
            if not hasattr(layers[index], "self_attn"):
                return None
            return args, {**kwargs, "attention_mask": hidden_away(kwargs["attention_mask"])}

        def hidden_away(mask):
            if mask is None:
                mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
                mask = mask[None, None]
            mask = mask.clone()
            mask[..., gone] = torch.finfo(mask.dtype).min
            for p in gone:  # what is gone looks at itself: a number, never used
                mask[..., p, p] = 0
            return mask

        return hook

    def run_without(module, args, kwargs, output):
        """A layer with a state has no mask to hide tokens by: run it on those that are left."""
        if not gone:
            return output
        left = seen[-1]
        hidden = args[0] if args else kwargs["hidden_states"]
        own = {**kwargs, "hidden_states": hidden[:, left], "past_key_values": None}
        cut = hidden.clone()
        cut[:, left] = module.forward(**own)
        return cut

    def keep_matrix(index):
        def hook(_module, _args, output):
            if isinstance(output, tuple) and output[1] is not None:
                matrices[index] = output[1][0].detach()

        return hook

    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(cut(index), with_kwargs=True))
        attention = getattr(layer, "self_attn", None)
        if attention is not None:
            handles.append(attention.register_forward_hook(keep_matrix(index)))
        else:
            handles.append(layer.register_forward_hook(run_without, with_kwargs=True))
    try:
        with torch.no_grad():
            logits = model(**prompt.inputs, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    assert np.isfinite(logits.numpy()).all()
    return logits, seen
