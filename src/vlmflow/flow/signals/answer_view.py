"""What a signal with passes of its own may look at: one answer, and the model about it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from vlmflow.lvlm.layout import TokenLayout

BRANCHES_AT_ONCE = 16
"""Short passes of :meth:`AnswerView.without` beside one untouched prompt; 4 in low memory."""


class AnswerView(ABC):
    """One prompt with its answer.

    ``N`` positions, ``P`` image tokens, ``T`` answer tokens.

    Parameters
    ----------
    layout : TokenLayout
        What each position is, and the boxes of the image tokens.
    token_ids : (N,) int64
        The prompt and its answer.
    is_word : (N,) bool
        Text tokens, the answer's too, without the tokenizer's special ones.
    """

    layout: TokenLayout
    token_ids: Tensor
    is_word: Tensor

    @abstractmethod
    def logits(self, vocabulary: Tensor) -> Tensor:
        """Run one forward pass: the logits of chosen words at every position.

        Parameters
        ----------
        vocabulary : (K,) int64
            Token ids.

        Returns
        -------
        (N, K)
            At least float32; after a model's own scale or cap of its logits.
        """

    @abstractmethod
    def without(self, removed: Tensor) -> Tensor:
        """Run short forward passes: the target of every answer token where image tokens are gone.

        They are removed before the first layer; all others keep their positions. Text before the
        picture is not run again. Each batch runs the untouched prompt once beside it.

        Parameters
        ----------
        removed : (n, P) bool
            Image tokens that each of ``n`` passes goes without.

        Returns
        -------
        (n, T)
            At least float32.
        """

    @property
    @abstractmethod
    def intact(self) -> Tensor:
        """The target of every answer token with all image tokens: (T,)."""
