"""How models of a family run, where it differs from one pass through all decoder layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """How a model runs: what truncation and removal curves have to follow.

    Parameters
    ----------
    late_features : int
        After how many of the first decoder layers image features are added once more. DeepStack
        does this: features of earlier layers of the vision tower go into the hidden states of the
        image tokens, outside of the decoder layers.
    generates_past_forward : bool
        Whether ``generate`` embeds the prompt and then runs ``model.language_model`` alone.
    """

    late_features: int = 0
    generates_past_forward: bool = False
