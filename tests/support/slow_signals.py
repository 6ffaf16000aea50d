"""Signals the slow way: loops over whole matrices, whole logits and eager passes.

What the fast way has to agree with; nothing here uses vlmflow but layouts, regions and settings.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from tests.support.masked_truncation import masked_logits
from tests.support.reference import Reference
from vlmflow.flow.regions import regions_of
from vlmflow.lvlm.grids import ImageGrid


def answer_rows(truth: Reference, target: int) -> list[int]:
    rows = [int(position) - 1 for position in truth.layout.answer_positions]
    return rows if target == 0 else rows[target - 1 : target]


def text_attention(truth: Reference, target: int) -> np.ndarray:
    """(L, P): the rows of all text so far, one by one."""
    last = answer_rows(truth, target)[-1]
    rows = [row for row in truth.text_rows() if row <= last]
    image = truth.layout.image_positions
    return np.stack(
        [np.mean([matrix[:, row, image].mean(0) for row in rows], 0) for matrix in truth.attention]
    )


def rollout(truth: Reference, target: int) -> np.ndarray:
    """(L, P): whole N x N matrices, multiplied from the first layer on."""
    length = len(truth.layout)
    product, maps = np.eye(length), []
    for matrix in truth.attention:
        product = (0.5 * matrix.mean(0) + 0.5 * np.eye(length)) @ product
        rows = product[answer_rows(truth, target)]
        maps.append(rows[:, truth.layout.image_positions].mean(0))
    return np.stack(maps)


def relevancy(truth: Reference, target: int) -> np.ndarray:
    """(L, P): the paper's update of the whole relevancy matrix."""
    relevance, maps = np.eye(len(truth.layout)), []
    for matrix, gradient in zip(truth.attention, truth.gradients[target], strict=True):
        relevance = relevance + np.maximum(matrix * gradient, 0).mean(0) @ relevance
        rows = relevance[answer_rows(truth, target)]
        maps.append(rows[:, truth.layout.image_positions].mean(0))
    return np.stack(maps)


def filtered(values, layout, window):
    """The rank Gaussian filter, token by token."""
    result = values.copy()
    places = {int(position): place for place, position in enumerate(layout.image_positions)}
    for grid in layout.grids:
        assert isinstance(grid, ImageGrid)
        rows, columns = grid.shape
        for row in range(rows):
            for column in range(columns):
                near = []
                for down in range(-(window // 2), window // 2 + 1):
                    for across in range(-(window // 2), window // 2 + 1):
                        r = min(max(row + down, 0), rows - 1)
                        c = min(max(column + across, 0), columns - 1)
                        near.append(values[places[int(grid.positions[r, c])]])
                near.sort()
                mean = sum(near) / len(near)
                spread = math.sqrt(sum((value - mean) ** 2 for value in near) / len(near))
                middle = near[len(near) // 2]
                if mean > 0 and spread / mean > 1e-3:
                    width = spread / mean
                    weights = [
                        math.exp(-((rank - len(near) // 2) ** 2) / (2 * width**2))
                        for rank in range(len(near))
                    ]
                    middle = sum(w * v for w, v in zip(weights, near, strict=True)) / sum(weights)
                result[places[int(grid.positions[row, column])]] = middle
    return result


def tam(eager, prompt, window):
    """(1 + T, P): from the logits of the whole vocabulary at every position."""
    with torch.no_grad():
        logits = eager.model(**prompt.inputs, use_cache=False).logits[0].double().numpy()
    ids = prompt.inputs["input_ids"][0].tolist()
    image = prompt.layout.image_positions
    special = set(eager.processor.tokenizer.all_special_ids)
    maps = []
    for position in prompt.layout.answer_positions:
        word = ids[position]
        own = np.maximum(logits[image, word], 0)
        pairs = [
            (max(logits[place, word], 0), np.maximum(logits[image, ids[place]], 0))
            for place in range(position)
            if place not in image and ids[place] not in special and ids[place] != word
        ]
        total = sum(weight for weight, _ in pairs)
        interference = sum(weight * other for weight, other in pairs) / (total or 1)
        (scale, *_), *_ = np.linalg.lstsq(interference[:, None], own, rcond=None)
        left = np.maximum(own - scale * interference, 0)
        maps.append(filtered(left, prompt.layout, window) if window > 1 else left)
    return np.stack([np.mean(maps, 0), *maps])


def answer_logits(eager, prompt, removed):
    """(T, vocabulary) where image tokens, (P,) bool, are hidden from the first layer on."""
    gone = prompt.layout.image_positions[removed].tolist()
    logits, _ = masked_logits(
        eager.model, eager.decoder_layers, prompt, None, eager.image_token_id, gone=gone
    )
    return logits[torch.from_numpy(prompt.layout.answer_rows)]


def search(eager, prompt, signal):
    """(1 + T, P): the search with one masked pass for every set of regions, in plain Python."""
    regions = regions_of(prompt.layout, signal.regions)
    ids = prompt.inputs["input_ids"][0, torch.from_numpy(prompt.layout.answer_positions)]
    scored, passes = {}, 0

    def f(shown):
        nonlocal passes
        if shown not in scored:
            logits = answer_logits(eager, prompt, ~np.isin(regions, sorted(shown))).double()
            tokens = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0].numpy()
            scored[shown] = np.array([tokens.sum(), *tokens])
        passes += 1
        return scored[shown]

    everything = frozenset(regions.tolist())

    def score(shown):
        return f(shown) - f(everything - shown)

    reached = score(frozenset())
    passes = 1  # The untouched prompt is not counted
    gained = {region: score(frozenset({region})) - reached for region in everything}
    order: list[int] = []
    while len(order) < len(everything):
        left = sorted(everything - set(order), key=lambda region: (-gained[region][0], region))
        tried = left[: signal.width] if order and len(left) > 1 else left[:1]
        if order and len(left) > 1:
            tried = tried[: (signal.forwards - passes) // 2]
            for region in tried:
                gained[region] = score(frozenset({*order, region})) - reached
        best = max(tried or left[:1], key=lambda region: gained[region][0])
        order.append(best)
        reached = reached + gained[best]
    values = {region: own.copy() for region, own in gained.items()}
    for before, region in pairwise(order):
        values[region][0] = min(values[region][0], values[before][0])
    return np.stack([values[int(region)] for region in regions], axis=1), order, passes


def targets_and_gradients(vlm, prompt, share, baseline):
    """Targets (1 + T,), their gradients (1 + T, P, C) and x - x', at one point of the path."""
    image = torch.from_numpy(prompt.layout.image_positions)
    seen = {}

    def move(_layer, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().clone()
        own = hidden[0, image]
        start = own.mean(0, keepdim=True) if baseline == "mean" else torch.zeros_like(own)
        seen["difference"] = own - start
        seen["point"] = (start + share * (own - start)).requires_grad_()
        hidden[0, image] = seen["point"]
        return (
            ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
        )

    handle = vlm.decoder_layers[0].register_forward_pre_hook(move, with_kwargs=True)
    logits = vlm.model(**prompt.inputs, use_cache=False).logits[0].double()
    handle.remove()
    tokens = []
    for position in prompt.layout.answer_positions:
        row = logits[position - 1]
        tokens.append(row[prompt.inputs["input_ids"][0, position]] - row.logsumexp(0))
    targets = [sum(tokens), *tokens]
    gradients = [torch.autograd.grad(t, seen["point"], retain_graph=True)[0] for t in targets]
    values = np.array([float(target.detach()) for target in targets])
    return values, torch.stack(gradients).double(), seen["difference"].double().detach()


def integrated(vlm, prompt, steps, baseline):
    """(1 + T, P): the sum over points, one after the other."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = 0
    for node, weight in zip(nodes, weights, strict=True):
        _, gradients, difference = targets_and_gradients(vlm, prompt, (node + 1) / 2, baseline)
        total = total + weight / 2 * (difference * gradients).sum(-1)
    return total.numpy()
