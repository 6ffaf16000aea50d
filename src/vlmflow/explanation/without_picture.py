"""What answers would be worth if the decoder had none of their pictures' tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import token_texts
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.truncation.truncation import Truncation


def picture_effects(
    vlm: LVLM, prompts: Sequence[Prompt], log_probabilities: Sequence[np.ndarray]
) -> list[PictureEffect | None]:
    """Run a batch of answered prompts once more without their image tokens.

    ``log_probabilities``, (T,) each, are those of the answers' tokens with the pictures. One
    forward pass over the text alone. None for models of which image tokens cannot be removed in a
    forward pass, and for tokens that are predicted by the picture's last one.
    """
    effects: list[PictureEffect | None] = [None] * len(prompts)
    # Elsewhere, what predicts a token would itself be gone.
    places = [
        place
        for place, prompt in enumerate(prompts)
        if not np.isin(prompt.layout.answer_rows, prompt.layout.image_positions).any()
    ]
    if not places:
        return effects
    inputs, layouts = collate([prompts[place] for place in places], pad_id(vlm.processor.tokenizer))
    rows = np.unique(np.concatenate([layout.answer_rows for layout in layouts]))
    try:
        with as_found(vlm.model), torch.no_grad(), Truncation(0, 0)(vlm.model):
            logits = logits_at(vlm.model, inputs, torch.from_numpy(rows).to(vlm.device))
    except (InputError, ModelError):
        if len(places) > 1:  # some attention takes no padding
            for place in places:
                own = [prompts[place]], [log_probabilities[place]]
                (effects[place],) = picture_effects(vlm, *own)
        return effects
    for row, (place, layout) in enumerate(zip(places, layouts, strict=True)):
        at_answer = torch.from_numpy(np.searchsorted(rows, layout.answer_rows)).to(logits.device)
        effects[place] = _effect(
            vlm, prompts[place], logits[row, at_answer], log_probabilities[place]
        )
    return effects


def _effect(
    vlm: LVLM, prompt: Prompt, logits: torch.Tensor, log_probabilities: np.ndarray
) -> PictureEffect:
    """Compare an answer's tokens with the picture and without it: (T, vocabulary) logits."""
    scores = logits.float().log_softmax(-1)
    ids = torch.tensor(prompt.answer_ids, device=scores.device)
    without = scores.gather(1, ids[:, None])[:, 0]
    return PictureEffect(
        np.exp(np.minimum(log_probabilities, 0)),
        without.exp().clamp(max=1).cpu().numpy(),
        token_texts(vlm.processor.tokenizer, scores.argmax(-1).tolist()),
    )
