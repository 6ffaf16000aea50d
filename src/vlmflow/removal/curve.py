"""The removal curve: what an answer loses when image tokens are really removed, for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from vlmflow.errors import InputError
from vlmflow.lvlm.as_found import as_found, check_untruncated
from vlmflow.lvlm.batch import pad_id
from vlmflow.lvlm.chat import VisualSource
from vlmflow.removal.answer_curve import AnswerCurve, answer_rows, answered, compared
from vlmflow.removal.branches import Branches
from vlmflow.truncation.amounts import Amount, amount
from vlmflow.truncation.rankings.ranking import Ranking
from vlmflow.truncation.rankings.registry import DEFAULT, as_ranking

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

FloatArray = npt.NDArray[np.float32]

WHAT = "a removal curve"


@dataclass(frozen=True, eq=False)
class RemovalCurve(AnswerCurve):
    """One answer, with image tokens removed from each layer on, against the untouched model.

    Beside what :class:`~vlmflow.removal.answer_curve.AnswerCurve` holds; its layers are all, or all
    but layer 0 where a ranking needs the attention of the layer before.

    Parameters
    ----------
    keep : Count or Share
        Image tokens that stay.
    ranking : Ranking, optional
        Which ones; None where none stay.
    """

    keep: Amount
    ranking: Ranking | None

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
    prompt = answered(vlm, images, question, answer, max_new_tokens)
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
    batch = answer_rows(prompts, pad_id(vlm.processor.tokenizer))
    check_untruncated(vlm.model, WHAT)
    with as_found(vlm.model, frozen=True), torch.inference_mode(False), torch.no_grad():
        branches = Branches(
            vlm, batch.inputs, batch.is_image, batch.is_answer, batch.rows, kept, ranking
        )
        logits = branches.logits()
    layers = range(branches.first, branches.first + logits.shape[1] - 1)
    return [
        RemovalCurve(
            **compared(logits[number, :, : batch.lengths[number]], prompt, layers, WHAT),
            keep=kept,
            ranking=ranking if kept else None,
        )
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
