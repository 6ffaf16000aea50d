"""Token Activation Map: what image tokens speak of, without what earlier words explain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.regions import neighbourhoods
from vlmflow.flow.signals.answer_view import AnswerView
from vlmflow.flow.signals.signal import Passes, Signal
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.parameters import check_integer

WIDEST = 31
"""Widest window of the filter, in tokens."""


@dataclass(frozen=True)
class Tam(Signal):
    """Activation of an answer token at the image tokens, less that of earlier words: one map.

    Li et al. 2025, arXiv 2506.23270. For the answer token ``i`` of the vocabulary's word ``c_i``,
    the activation is ``A_i = (F_v w_{c_i})^+``: features of the image tokens after the last layer,
    times the head's row. Estimated causal inference takes away the interference of the words before
    it, ``I_i = sum_j a_ij A_j`` over text tokens ``j`` of prompt and answer, with weights ``a_ij``
    that add up to 1 and are proportional to ``(f_j w_{c_i})^+``, what they speak of ``c_i``
    themselves: ``(A_i - s I_i)^+``, where ``s`` minimises ``|A_i - s I_i|^2``. The rank Gaussian
    filter then sorts the values around each token and weighs them by a Gaussian over ranks around
    the median, as wide as their coefficient of variation.

    Left out of ``j`` are special tokens and tokens of the same word, which would explain a word by
    itself. The whole answer's map is the mean over its tokens. Activations are the model's logits,
    after a scale or cap of its own. It needs one forward pass and no gradient.

    Parameters
    ----------
    window : int
        Side of the filter's window in tokens, odd; 1 leaves the filter out.
    """

    name = "tam"
    summary = (
        "what image tokens speak of, less the interference of earlier words, filtered (window)"
    )
    label = "TAM"
    source = "Token Activation Map (Li et al. 2025, arXiv 2506.23270)"
    reads = "logits"
    whole = True

    window: int = 3

    def __post_init__(self) -> None:
        check_integer("window", self.window, least=1, most=WIDEST)
        if self.window % 2 == 0:
            raise InputError(
                f"window={self.window}, but a window has a token in its middle: give an odd number"
            )

    def passes(self, tokens: int = 0) -> Passes:
        """Count the one forward pass; see :meth:`Signal.passes`."""
        del tokens
        return Passes(1, 0)

    def of_answer(self, seen: AnswerView) -> Tensor:
        """Compute the map of every token; see :meth:`Signal.of_answer`."""
        layout = seen.layout
        if self.window > 1 and not neighbourhoods(layout, self.window):
            why = layout.grids_missing or "they have no places of their own in the picture"
            raise InputError(
                f"{self.title} filters its map over neighbouring image tokens, but {why}; "
                "tam(window=1) leaves the filter out"
            )
        ids = seen.token_ids
        image = torch.from_numpy(layout.image_positions).to(ids.device)
        words = torch.unique(ids[seen.is_word | _is_answer(layout, ids)])
        word_of = {word: column for column, word in enumerate(words.tolist())}
        logits = seen.logits(words).clamp_min(0)  # (N, K)
        activation = logits[image]  # (P, K)
        maps = []
        for position in layout.answer_positions.tolist():
            word = int(ids[position])
            before = torch.arange(len(ids), device=ids.device) < position
            context = (before & seen.is_word & (ids != word)).nonzero()[:, 0]
            weights = logits[context.to(logits.device), word_of[word]]
            columns = [word_of[int(ids[place])] for place in context.tolist()]
            interference = activation[:, columns] @ _shares(weights)
            maps.append(_residue(activation[:, word_of[word]], interference))
        values = torch.stack(maps)
        values = torch.stack([self._filtered(own, layout) for own in values])
        return torch.cat([values.mean(0, keepdim=True), values])

    def _filtered(self, values: Tensor, layout: TokenLayout) -> Tensor:
        """Apply the rank Gaussian filter over every grid; (P,) -> (P,)."""
        if self.window == 1:
            return values
        filtered = values.clone()
        for tokens, around in neighbourhoods(layout, self.window):
            near = values[torch.from_numpy(around).to(values.device)].sort(dim=1).values
            width = near.std(1, correction=0) / near.mean(1).clamp_min(torch.finfo(near.dtype).tiny)
            ranks = torch.arange(near.shape[1], device=near.device) - near.shape[1] // 2
            # Where all values are alike, the median is one of them.
            width = width.clamp_min(1e-6)[:, None]
            weights = torch.exp(-((ranks / width) ** 2) / 2)
            own = (weights * near).sum(1) / weights.sum(1)
            filtered[torch.from_numpy(tokens).to(values.device)] = own
        return filtered


def _is_answer(layout: TokenLayout, ids: Tensor) -> Tensor:
    is_answer = torch.zeros_like(ids, dtype=torch.bool)
    is_answer[torch.from_numpy(layout.answer_positions).to(ids.device)] = True
    return is_answer


def _shares(weights: Tensor) -> Tensor:
    """Weights as shares of their sum; all 0 where none is positive."""
    total = weights.sum()
    return weights / total.where(total > 0, 1)


def _residue(activation: Tensor, interference: Tensor) -> Tensor:
    """Return what least squares leaves of an activation, its positive part."""
    power = interference @ interference
    scale = (activation @ interference) / power.where(power > 0, 1)
    return (activation - scale * interference).clamp_min(0)
