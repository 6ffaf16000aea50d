"""The removal curve: what an answer loses when image tokens are really removed, for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.as_found import as_found, check_untruncated
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.layout import Segment
from vlmflow.removal.branches import Branches
from vlmflow.truncation.amounts import Amount, amount
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """One answer, with image tokens removed from each layer on, against the untouched model.

    ``K`` layers, ``T`` answer tokens. Answers are teacher-forced: every position is predicted
    after the same answer tokens.

    Parameters
    ----------
    layers : tuple of K int
        Layers from which tokens are removed, counted from 0: all, or all but layer 0 where a
        ranking needs the attention of the layer before.
    keep : Count or Share
        Image tokens that stay.
    ranking : Ranking, optional
        Which ones; None where none stay.
    answer_tokens : tuple of T str
        The answer.
    kl : (K, T) float32
        ``KL(untouched || removed)`` of the next-token distributions, in nats.
    agrees : (K, T) bool
        Whether the most probable token is the untouched model's.
    ends_alike : (K,) bool
        The same for the token after the answer: its end, where the model gave the answer itself.
    logprob : (K, T) float32
        Log-probability of the answer tokens.
    untouched_logprob : (T,) float32
        That of the untouched model.
    """

    layers: tuple[int, ...]
    keep: Amount
    ranking: Ranking | None
    answer_tokens: tuple[str, ...]
    kl: FloatArray
    agrees: BoolArray
    ends_alike: BoolArray
    logprob: FloatArray
    untouched_logprob: FloatArray

    @property
    def mean_kl(self) -> FloatArray:
        """``(K,)``: mean over the answer tokens."""
        mean: FloatArray = self.kl.mean(1)
        return mean

    @property
    def agreement(self) -> FloatArray:
        """``(K,)``: share of answer tokens whose most probable token stays the same."""
        share: FloatArray = self.agrees.mean(1, dtype=np.float32)
        return share

    @property
    def logprob_change(self) -> FloatArray:
        """``(K,)``: change of the whole answer's log-probability; negative where it loses."""
        change: FloatArray = (self.logprob - self.untouched_logprob).sum(1)
        return change

    @property
    def same_first(self) -> BoolArray:
        """``(K,)``: whether greedy decoding still begins with the same token."""
        return self.agrees[:, 0]

    @property
    def same_answer(self) -> BoolArray:
        """``(K,)``: whether greedy decoding still gives the same answer, its end included.

        Exact for answers that the model itself gave greedily: the first token that differs shows.
        """
        same: BoolArray = self.agrees.all(1) & self.ends_alike
        return same

    @property
    def redundancy(self) -> FloatArray:
        """``(K,)``: 1 - mean KL at K / mean KL with no image token at all.

        NaN where removing them before the first layer loses nothing, or was not measured.
        """
        if self.layers[0] != 0 or not self.mean_kl[0] > 0:
            return np.full(len(self.layers), np.nan, dtype=np.float32)
        share: FloatArray = 1 - self.mean_kl / self.mean_kl[0]
        return share


def removal_curve(
    vlm: LVLM,
    images: VisualSource | Sequence[VisualSource] | None,
    question: str | Sequence[Mapping[str, Any]],
    answer: str | Sequence[int] | None = None,
    *,
    keep: int | float = 0,
    rank_by: str | Ranking | None = None,
    max_new_tokens: int = 64,
) -> RemovalCurve:
    """Measure one answer's removal curve, for every layer in one forward pass.

    Parameters
    ----------
    vlm : LVLM
        The model; left exactly as found.
    images, question, answer
        As for :meth:`vlmflow.lvlm.model.LVLM.prepare`. Without an answer the model gives its own.
    keep : int or float
        Image tokens that stay: a count, or a fraction.
    rank_by : str or Ranking, optional
        Which ones, by name or as an object; oracles are left out. They are chosen again at
        each layer, from the prompt alone.
    max_new_tokens : int
        Longest answer to generate.

    Raises
    ------
    InputError
        For settings that are impossible, or a model that gives no answer.
    """
    prompt = vlm.prepare(images, question)
    if answer is None:
        answer = vlm.generate_ids(prompt, max_new_tokens=max_new_tokens)
        if not answer:
            raise InputError(
                f"{vlm.name} ends its answer before the first token, so there is nothing to "
                "measure: pass answer=..."
            )
    prompt = vlm.with_answer(prompt, answer)
    return removal_curves(vlm, [prompt], keep=keep, rank_by=rank_by)[0]


def removal_curves(
    vlm: LVLM,
    prompts: Sequence[Prompt],
    *,
    keep: int | float = 0,
    rank_by: str | Ranking | None = None,
) -> list[RemovalCurve]:
    """Measure the removal curves of a batch of prompts with answers in one forward pass.

    The logits of ``(L + 1) (T + 1)`` positions per prompt exist at once, ``L`` layers and ``T``
    tokens in the longest answer: for long answers and many layers, make batches small.

    Parameters
    ----------
    vlm : LVLM
        The model; left exactly as found.
    prompts : sequence of Prompt
        Prompts with answers (:meth:`vlmflow.lvlm.model.LVLM.prepare`).
    keep, rank_by
        As for :func:`removal_curve`.

    Returns
    -------
    list of RemovalCurve
        In the order of the prompts.

    Raises
    ------
    InputError
        For settings that are impossible, or a prompt without an answer.
    ModelError
        If logits are not finite.
    """
    kept = amount(keep)
    ranking = _checked_ranking(kept, rank_by)
    if any(prompt.answer is None for prompt in prompts):
        raise InputError("a removal curve measures an answer: prepare every prompt with one")
    inputs, layouts = collate(prompts, pad_id(vlm.processor.tokenizer))
    ids: Tensor = inputs["input_ids"]
    segments = torch.from_numpy(np.stack([layout.segments for layout in layouts])).to(ids.device)
    rows = [np.append(layout.answer_rows, layout.answer_positions[-1]) for layout in layouts]
    longest = max(map(len, rows))
    padded = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
    check_untruncated(vlm.model, "a removal curve")
    with as_found(vlm.model, frozen=True), torch.inference_mode(False), torch.no_grad():
        branches = Branches(
            vlm,
            inputs,
            segments == Segment.IMAGE,
            segments == Segment.ANSWER,
            torch.from_numpy(padded).to(ids.device),
            kept,
            ranking,
        )
        logits = branches.logits()
    return [
        _curve(logits[number, :, : len(rows[number])], prompt, branches)
        for number, prompt in enumerate(prompts)
    ]


def _checked_ranking(keep: Amount, rank_by: str | Ranking | None) -> Ranking:
    ranking = as_ranking(DEFAULT if rank_by is None else rank_by)
    if ranking.is_oracle:
        raise InputError(
            f"rank_by={ranking.known_as()!r} looks at the answer, so it cannot choose for a "
            "removal curve; choose a ranking that looks at the prompt alone"
        )
    if not keep and rank_by is not None:
        raise InputError(
            f"rank_by={ranking.known_as()!r} with keep=0 chooses nothing; leave one of them out"
        )
    return ranking


def _curve(logits: Tensor, prompt: Prompt, branches: Branches) -> RemovalCurve:
    """Compare (1 + K, T + 1, vocabulary) logits, the untouched model's first."""
    if not bool(logits.isfinite().all()):
        raise ModelError(
            "the logits of a removal curve are not finite; load the model in float32 or bfloat16"
        )
    answer = torch.tensor(prompt.answer_ids, device=logits.device)[:, None]
    best = logits.argmax(-1)
    agrees = (best[1:] == best[0]).cpu().numpy()
    reference = logits[0, :-1].float().log_softmax(-1)
    kl, logprob = [], []
    for branch in logits[1:, :-1]:
        chances = branch.float().log_softmax(-1)
        kl.append((reference.exp() * (reference - chances)).sum(-1).clamp_min(0))
        logprob.append(chances.gather(1, answer)[:, 0])
    layout = prompt.layout
    return RemovalCurve(
        layers=tuple(range(branches.first, branches.first + len(kl))),
        keep=branches.keep,
        ranking=branches.ranking if branches.keep else None,
        answer_tokens=tuple(layout.tokens[position] for position in layout.answer_positions),
        kl=torch.stack(kl).cpu().numpy(),
        agrees=agrees[:, :-1],
        ends_alike=agrees[:, -1],
        logprob=torch.stack(logprob).cpu().numpy(),
        untouched_logprob=reference.gather(1, answer)[:, 0].cpu().numpy(),
    )
