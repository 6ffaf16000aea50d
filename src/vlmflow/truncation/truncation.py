"""A truncation: a policy that can be put on a model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.truncation.policy import Policy

if TYPE_CHECKING:
    from vlmflow.truncation.run import TruncatedRun


@dataclass(frozen=True, repr=False)
class Truncation(Policy):
    """Remove image tokens from the decoder's sequence, from a layer on.

    ``with Truncation(layer=16, keep=0)(model): model.generate(**inputs)`` runs on any transformers
    LVLM. Layers ``layer .. L-1`` do not see the removed tokens; layers before it do. With several
    stages, ``layer`` and ``keep`` are sequences of the same length.

    Parameters
    ----------
    layer : int or sequence of int
        First decoder layer, counted from 0, that does not see the removed tokens. 0: none does.
    keep : int, float or sequence of these
        Image tokens of a prompt (of all its pictures together) that stay: a count (int), or a
        fraction (float) of those the prompt has before any stage, rounded half up. ``1`` is one
        token, ``1.0`` all of them.
    rank_by : str or Ranking
        Which tokens stay: the name of a ranking, or an instance of a subclass of
        :class:`vlmflow.Ranking`.
    remainder : str
        ``"drop"``; ``"merge"``: each removed token is averaged into the most similar kept one,
        weighted by how many tokens each represents (Bolya et al. 2023, ToMe); ``"average"``: all
        removed tokens become one more token, at the position of the last of them.
    positions : str
        ``"keep"`` the original positions, or ``"repack"`` them to 0, 1, 2, ... without gaps.
    within : str
        ``"prompt"``: tokens of all pictures compete. ``"picture"``: each picture, and each group of
        a video's frames that share tokens, keeps its share of ``keep`` and at least one token, so
        that no moment is lost; the ranking chooses in each as if it were alone, and merging stays
        in it.

    Raises
    ------
    InputError
        For a setting that is unknown or impossible.
    """

    def __call__(self, model: Any) -> AbstractContextManager[TruncatedRun]:
        """Truncate a transformers model for the length of a ``with`` block.

        The block gives a :class:`~vlmflow.truncation.run.TruncatedRun`, whose ``tokens_per_layer``
        says what was really removed. Compiled modules run uncompiled meanwhile.

        Raises
        ------
        InputError
            If a layer is out of the model's range, or the model is truncated already.
        ModelError
            If the model has no image tokens in its sequence; on leaving the block, if prompts with
            pictures were answered in it and nothing was removed.
        """
        from vlmflow.truncation.engine import truncated

        return truncated(model, self)
