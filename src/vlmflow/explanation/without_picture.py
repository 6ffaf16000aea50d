"""What an answer would be worth if the decoder had none of the picture's tokens."""

from __future__ import annotations

import numpy as np
import torch

from vlmflow.errors import InputError, ModelError
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import token_texts
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.truncation.truncation import Truncation


def picture_effect(
    vlm: LVLM, prompt: Prompt, log_probabilities: np.ndarray
) -> PictureEffect | None:
    """Run an answered prompt once more without its image tokens.

    ``log_probabilities``, (T,), are those of the answer's tokens with the picture. One forward
    pass over the text alone. None for models of which image tokens cannot be removed in a forward
    pass, and for tokens that are predicted by the picture's last one.
    """
    layout = prompt.layout
    if np.isin(layout.answer_rows, layout.image_positions).any():
        return None  # what predicts a token would itself be gone
    rows = torch.from_numpy(layout.answer_rows).to(vlm.device)
    ids = prompt.inputs["input_ids"][0, torch.from_numpy(layout.answer_positions)]
    try:
        with as_found(vlm.model), torch.no_grad(), Truncation(0, 0)(vlm.model):
            logits = logits_at(vlm.model, prompt.inputs, rows)[0]
    except (InputError, ModelError):
        return None
    scores = logits.float().log_softmax(-1)
    own = scores.gather(1, ids.to(scores.device)[:, None])[:, 0]
    return PictureEffect(
        np.exp(np.minimum(log_probabilities, 0)),
        own.exp().clamp(max=1).cpu().numpy(),
        token_texts(vlm.processor.tokenizer, scores.argmax(-1).tolist()),
    )
