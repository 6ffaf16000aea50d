"""The score of a fixed answer about other pictures: the mean probability of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.batch import collate, pad_id
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.model_parts import logits_at

BATCH = 16

Question = str | Sequence[Mapping[str, Any]]


def token_probabilities(
    vlm: LVLM,
    pictures: Sequence[Image.Image],
    others: Sequence[Image.Image],
    image: int,
    question: Question,
    answer: Sequence[int],
    *,
    batch: int = BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the probability of every token of an answer, under each of some pictures.

    Parameters
    ----------
    vlm : LVLM
        The model; left as found.
    pictures : sequence of n PIL.Image
        What takes the place of picture ``image`` among ``others``, the pictures of the question.
    question, answer
        As for :meth:`vlmflow.LVLM.prepare`; the answer as T token ids.
    batch : int
        Pictures to a forward pass.
    on_batch : callable, optional
        Called with the number of pictures done.

    Returns
    -------
    (n, T) float64
    """
    if type(batch) is not int or batch < 1:
        raise InputError(f"batch={batch!r}, but a forward pass takes at least one picture")
    ids = torch.tensor(answer)
    rows = []
    for start in range(0, len(pictures), batch):
        prompts = []
        for picture in pictures[start : start + batch]:
            of_prompt = [*others[:image], picture, *others[image + 1 :]]
            prompts.append(vlm.prepare(of_prompt, question, answer))
        inputs, layouts = collate(prompts, pad_id(vlm.processor.tokenizer))
        at = torch.from_numpy(layouts[0].answer_rows).to(vlm.device)  # at the end of every row
        with as_found(vlm.model), torch.no_grad():
            logits = logits_at(vlm.model, inputs, at)
        scores = logits.float().log_softmax(-1)
        own = scores.gather(2, ids.to(scores.device).expand(len(prompts), -1)[..., None])[..., 0]
        rows.append(own.exp().double().cpu().numpy())
        if on_batch is not None:
            on_batch(start + len(prompts))
    return np.concatenate(rows)
