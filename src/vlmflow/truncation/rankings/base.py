"""The seam for rankings: which image tokens of one prompt stay.

To add one: write a file beside ``random.py`` with a :class:`Ranking`, add it to ``RANKINGS`` in
``__init__.py`` and its name and line to ``vlmflow.truncation.names``; the tests run over that list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.flow.attention_rows import AttentionCall


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a ranking may look at: one prompt at the input of the layer that truncates.

    Parameters
    ----------
    layer : int
        That layer.
    hidden : (n, width)
        Hidden states of the row of the batch, padding included.
    image, text : (P,), (U,) int64
        Image tokens that are still there, and text after the first of them; indices into
        ``hidden``, in order.
    sample : int
        Row of the batch.
    call : AttentionCall, optional
        Attention of the layer before; its queries are the same n tokens, its keys end with them.
    places : (P, 3) float, optional
        Picture, row and column of each image token, in patches; None where that is not known.
    gradient_scores : (P,), optional
        For oracles: the signal of each image token.
    seed : int
        The policy's seed and the prompt's ids in one number.
    """

    layer: int
    hidden: Tensor
    image: Tensor
    text: Tensor
    sample: int
    call: AttentionCall | None
    places: Tensor | None
    gradient_scores: Tensor | None
    seed: int

    @property
    def attention(self) -> AttentionCall:
        """Attention of the layer before.

        Raises
        ------
        InputError
            If that layer has none.
        """
        if self.call is None:
            raise InputError(
                f"layer {self.layer - 1} has no attention to rank by; choose another layer, or a "
                "ranking that reads hidden states (diversity, question_similarity) or nothing "
                "(random, uniform)"
            )
        return self.call

    @property
    def image_keys(self) -> Tensor:
        """Where the image tokens are among the keys of :attr:`attention`."""
        call = self.attention
        return self.image + (call.key.shape[2] - call.query.shape[2])


class Ranking(ABC):
    """Chooses image tokens of one prompt."""

    @abstractmethod
    def select(self, candidates: Candidates, keep: int) -> Tensor:
        """Choose ``keep`` of the P image tokens, ``1 <= keep <= P``.

        Returns
        -------
        (keep,) int64
            Indices into ``candidates.image``, increasing.
        """


class ScoreRanking(Ranking):
    """Keeps the highest scores; of equal ones, the earlier."""

    @abstractmethod
    def scores(self, candidates: Candidates) -> Tensor:
        """Give every image token a score, ``(P,)``."""

    def select(self, candidates: Candidates, keep: int) -> Tensor:
        """Keep the highest scores; see :meth:`Ranking.select`."""
        order = self.scores(candidates).sort(descending=True, stable=True).indices
        return order[:keep].sort().values
