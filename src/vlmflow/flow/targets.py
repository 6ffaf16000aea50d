"""The scalar that is explained, per answer token."""

from __future__ import annotations

from torch import Tensor

from vlmflow.errors import InputError

SCALARS: tuple[str, ...] = ("logprob", "logit", "margin")
"""Kinds of scalar; the first is the default."""


def target_values(logits: Tensor, answer_ids: Tensor, kind: str) -> Tensor:
    """Target of every answer token; their sum is the target of the whole answer.

    ``"logprob"`` is the log-probability of the token, ``"logit"`` its raw logit (paper eq. 1), and
    ``"margin"`` its logit minus the best other logit, which leaves out what all tokens share.

    Parameters
    ----------
    logits : (T, vocabulary)
        At the positions that PREDICT the answer tokens: one before each, in the expanded sequence.
    answer_ids : (T,) int64
        The answer tokens.
    kind : str
        One of :data:`SCALARS`.

    Returns
    -------
    (T,)
        In float32 or wider.
    """
    scores = logits if logits.dtype.itemsize > 4 else logits.float()
    ids = answer_ids[:, None]
    if kind == "logprob":
        return scores.log_softmax(-1).gather(1, ids).squeeze(1)
    chosen = scores.gather(1, ids).squeeze(1)
    if kind == "logit":
        return chosen
    others = scores.scatter(1, ids, float("-inf"))
    return chosen - others.max(-1).values


def check_scalar(kind: str) -> None:
    """Raise InputError for a scalar that does not exist."""
    if kind not in SCALARS:
        raise InputError(f"scalar={kind!r} is none of {', '.join(map(repr, SCALARS))}")
