"""Auxiliary losses: words and labels of image tokens, and words that middle layers hold."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from training.scenes_llava.conversations import GRID, IGNORE, PATCH_LABELS
from vlmflow.scenes.generator import COLOURS, KINDS, SIZES

BACKGROUND_WEIGHT = 0.05
STEEPNESS = 8.0  # of the words for a place
PLACE_CHANNELS = [list(PATCH_LABELS).index(name) for name in ("column", "row")]


def patch_heads(model: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """Linear read-outs of the patch labels; tower and projected image tokens are equally wide."""
    width = model.model.vision_tower.config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in PATCH_LABELS.items()})
    return heads.to(model.device)


def patch_loss(
    heads: nn.ModuleDict, features: torch.Tensor, patches: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of the patch labels, and the share right where there is something.

    ``patches`` has a channel for each label that has a head, in the order of ``PATCH_LABELS``.
    """
    loss = torch.zeros((), device=features.device)
    right: dict[str, float] = {}
    for channel, name in enumerate(name for name in PATCH_LABELS if name in heads):
        labels = patches[:, channel]
        scores = heads[name](features).float()
        weight = torch.ones(scores.shape[-1], device=features.device)
        weight[0] = BACKGROUND_WEIGHT
        loss = loss + nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), weight)
        right[name] = (scores.argmax(-1) == labels)[labels > 0].float().mean().item()
    return loss, right


def word_ids(processor: LlavaProcessor, device: torch.device) -> torch.Tensor:
    """Token of the word for each kind, colour, size and digit: (5, classes), padded with 0."""
    names = [[f" {word}" for word in group] for group in (KINDS, COLOURS, SIZES)]
    names += [[str(digit) for digit in range(10)]] * 2
    ids = torch.zeros(len(names), max(map(len, names)) + 1, dtype=torch.long)
    for row, group in enumerate(names):
        for column, word in enumerate(group, start=1):
            (ids[row, column],) = processor.tokenizer.encode(word, add_special_tokens=False)
    return ids.to(device)


def side_ids(processor: LlavaProcessor, device: torch.device) -> torch.Tensor:
    """Tokens of the words for small and large columns and rows: (2, 2)."""
    pairs = ((" left", " right"), (" above", " below"))
    encode = processor.tokenizer.encode
    ids = [[encode(word, add_special_tokens=False) for word in pair] for pair in pairs]
    return torch.tensor(ids, device=device)[..., 0]


def word_loss(
    model: LlavaForConditionalGeneration,
    words: torch.Tensor,
    embedded: torch.Tensor,
    patches: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of reading an object's words off its image tokens with the output embedding.

    Places image tokens near the words for what they show: ``words`` are those of the first patch
    labels, in their order. A label that an object does not have asks for nothing.
    """
    tokens = nn.functional.rms_norm(embedded, embedded.shape[-1:])
    something = patches[:, 0] > 0
    scores = model.lm_head(tokens[something]).float()
    losses = []
    for channel, ids in enumerate(words):
        labels = patches[:, channel][something]
        targets = torch.where(labels > 0, ids[labels], IGNORE)
        losses.append(nn.functional.cross_entropy(scores, targets, ignore_index=IGNORE))
    return torch.stack(losses).mean()


def side_loss(
    model: LlavaForConditionalGeneration,
    sides: torch.Tensor,
    embedded: torch.Tensor,
    patches: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of reading how far to the left and above an object is off its image tokens."""
    tokens = nn.functional.rms_norm(embedded, embedded.shape[-1:])
    something = patches[:, 0] > 0
    columns, rows = ((patches[:, channel][something] - 0.5) / GRID for channel in PLACE_CHANNELS)
    places = torch.stack([columns, rows], dim=-1)
    return _shares_loss(model.lm_head(tokens[something]), sides, places)


def spot_loss(
    model: LlavaForConditionalGeneration,
    sides: torch.Tensor,
    states: torch.Tensor,
    spots: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of reading an object's place off the word that names it, in a middle layer.

    With both places at hand, where one object is seen from another takes no look at the picture.
    """
    is_name = spots[..., 0] >= 0
    scores = model.lm_head(model.model.language_model.norm(states[is_name]))
    return _shares_loss(scores, sides, spots[is_name])


def _shares_loss(scores: torch.Tensor, sides: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of two words per axis that share a place between them.

    The share of "right" follows the place along a logistic curve, 0.12 at a quarter of the way from
    the left: the difference of the two logits is linear in the place.
    """
    chances = scores.float().log_softmax(-1)
    losses = []
    for place, (low, high) in zip(places.unbind(-1), sides, strict=True):
        share = torch.sigmoid(STEEPNESS * (place - 0.5))
        losses.append(-(1 - share) * chances[:, low] - share * chances[:, high])
    return torch.stack(losses).mean()


def centre_loss(
    head: nn.Module, embedded: torch.Tensor, patches: torch.Tensor, centres: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of telling the centre of an object from the rest of it.

    With one marked token per object, counting objects is counting tokens.
    """
    something = patches[:, 0] > 0
    tokens = nn.functional.rms_norm(embedded[something], embedded.shape[-1:])
    scores = head(tokens).float()[:, 0]
    return nn.functional.binary_cross_entropy_with_logits(scores, centres[something].float())


def probe_loss(
    model: LlavaForConditionalGeneration, states: torch.Tensor, words: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of words read off a middle layer's states, and the share right.

    What holds for an option is to be known at its end, and the number of a group where it is named,
    early enough for later tokens to use it.
    """
    targets = words[words != IGNORE]
    scores = model.lm_head(model.model.language_model.norm(states[words != IGNORE])).float()
    right = (scores.argmax(-1) == targets).float().mean().item()
    return nn.functional.cross_entropy(scores, targets), right


def hint_loss(
    model: LlavaForConditionalGeneration, states: torch.Tensor, hints: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the right option's words where it or its letter is to follow.

    ``states`` are those after a middle layer: with the answer there, finding its letter is left.
    """
    hinted = hints[..., 0] != IGNORE
    scores = model.lm_head(model.model.language_model.norm(states[hinted])).float()
    words = hints[hinted]
    losses = [
        nn.functional.cross_entropy(scores, words[:, number], ignore_index=IGNORE, reduction="sum")
        for number in range(words.shape[1])
    ]
    return torch.stack(losses).sum() / (words != IGNORE).sum()
