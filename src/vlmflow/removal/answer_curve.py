"""What a change at each layer does to an answer, against the untouched model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.batch import collate
from vlmflow.lvlm.layout import Segment

if TYPE_CHECKING:
    from vlmflow.lvlm.chat import VisualSource
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnswerCurve:
    """One answer under a change at each layer, against the untouched model.

    ``K`` layers, ``T`` answer tokens. Answers are teacher-forced: every position is predicted
    after the same answer tokens.

    Parameters
    ----------
    layers : tuple of K int
        Where the change is made, counted from 0.
    answer_tokens : tuple of T str
        The answer.
    kl : (K, T) float32
        ``KL(untouched || changed)`` of the next-token distributions, in nats.
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


def compared(logits: Tensor, prompt: Prompt, layers: Iterable[int], what: str) -> dict[str, Any]:
    """Compare the logits of every layer's change with the untouched model's.

    Parameters
    ----------
    logits : (1 + K, T + 1, vocabulary)
        At the positions that predict the answer and what follows it; the untouched model's first.
    prompt : Prompt
        With its answer.
    layers : iterable of K int
        Where the changes were made.
    what : str
        What is measured, for the refusal.

    Returns
    -------
    dict
        The fields of :class:`AnswerCurve`.

    Raises
    ------
    ModelError
        If logits are not finite.
    """
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"the logits of {what} are not finite; load the model in float32 or bfloat16"
        )
    answer = torch.tensor(prompt.answer_ids, device=logits.device)[:, None]
    best = logits.argmax(-1)
    agrees = (best[1:] == best[0]).cpu().numpy()
    reference = logits[0, :-1].float().log_softmax(-1)
    kl, logprob = [], []
    for changed in logits[1:, :-1]:
        chances = changed.float().log_softmax(-1)
        kl.append((reference.exp() * (reference - chances)).sum(-1).clamp_min(0))
        logprob.append(chances.gather(1, answer)[:, 0])
    layout = prompt.layout
    return {
        "layers": tuple(layers),
        "answer_tokens": tuple(layout.tokens[position] for position in layout.answer_positions),
        "kl": torch.stack(kl).cpu().numpy(),
        "agrees": agrees[:, :-1],
        "ends_alike": agrees[:, -1],
        "logprob": torch.stack(logprob).cpu().numpy(),
        "untouched_logprob": reference.gather(1, answer)[:, 0].cpu().numpy(),
    }


def answered(
    vlm: LVLM,
    images: VisualSource | Sequence[VisualSource] | None,
    question: str | Sequence[Mapping[str, Any]],
    answer: str | Sequence[int] | None,
    max_new_tokens: int,
) -> Prompt:
    """Prepare a prompt with its answer: the one that is given, or the model's own.

    Raises
    ------
    InputError
        If the model gives no answer.
    """
    prompt = vlm.prepare(images, question)
    if answer is None:
        answer = vlm.generate_ids(prompt, max_new_tokens=max_new_tokens)
        if not answer:
            raise InputError(
                f"{vlm.name} ends its answer before the first token, so there is nothing to "
                "measure: pass answer=..."
            )
    return vlm.with_answer(prompt, answer)


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """A batch of prompts with answers, as a pass over them needs it."""

    inputs: dict[str, Any]  # What the model's forward takes
    is_image: Tensor  # (B, N) bool: image tokens
    is_answer: Tensor  # (B, N) bool: tokens of the answers
    # (B, T + 1) int64: positions that predict the longest answer and what follows it; shorter
    # answers repeat their last one
    rows: Tensor
    lengths: list[int]  # How many of a row's positions are its own


def answer_rows(prompts: Sequence[Prompt], pad_id: int) -> AnswerRows:
    """Put prompts with answers into one batch."""
    inputs, layouts = collate(prompts, pad_id)
    ids: Tensor = inputs["input_ids"]
    segments = torch.from_numpy(np.stack([layout.segments for layout in layouts])).to(ids.device)
    rows = [np.append(layout.answer_rows, layout.answer_positions[-1]) for layout in layouts]
    longest = max(map(len, rows))
    padded = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
    return AnswerRows(
        inputs,
        segments == Segment.IMAGE,
        segments == Segment.ANSWER,
        torch.from_numpy(padded).to(ids.device),
        list(map(len, rows)),
    )
