"""From a processor's output to the layout of its positions, before a model runs and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlmflow.errors import ModelError
from vlmflow.lvlm.families import PromptPictures
from vlmflow.lvlm.geometry import MapUnavailableError
from vlmflow.lvlm.grids import Grid, IntArray
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.tokens import token_texts
from vlmflow.lvlm.videos import Frames

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


def build_layout(
    vlm: LVLM,
    inputs: Mapping[str, torch.Tensor],
    sizes: tuple[tuple[int, int], ...],
    frames: tuple[Frames | None, ...] = (),
) -> TokenLayout:
    """Lay out a prompt without an answer.

    Parameters
    ----------
    vlm : LVLM
        The model that the prompt is for.
    inputs : mapping
        The processor's output, batch of one.
    sizes : tuple of (width, height)
        Of the original pictures in pixels, in the order of the prompt.
    frames : tuple of (Frames or None)
        See :class:`TokenLayout`.

    Raises
    ------
    ModelError
        If there are no image tokens.
    """
    ids = inputs["input_ids"][0].cpu().numpy()
    is_image = np.isin(ids, vlm.image_token_ids)
    if not is_image.any():
        raise ModelError(
            f"the processor of {vlm.name} put no image tokens into the prompt: processor and "
            "model do not belong together"
        )
    segments = np.full(ids.shape, Segment.USER, dtype=np.int8)
    segments[: int(is_image.argmax())] = Segment.SYSTEM
    segments[is_image] = Segment.IMAGE
    grids: tuple[Grid, ...] = ()
    missing = ""
    try:
        grids = _grids(vlm, inputs, np.flatnonzero(is_image), sizes, frames)
    except MapUnavailableError as unavailable:
        missing = str(unavailable)
    tokens = token_texts(vlm.processor.tokenizer, ids.tolist())
    return TokenLayout(segments, tokens, sizes, grids, missing, frames)


def _grids(
    vlm: LVLM,
    inputs: Mapping[str, torch.Tensor],
    positions: IntArray,
    sizes: tuple[tuple[int, int], ...],
    frames: tuple[Frames | None, ...],
) -> tuple[Grid, ...]:
    """Ask the family about pictures and about videos, each apart from the others' tokens."""
    if not frames:
        return vlm.family.grids(_pictures(vlm, inputs, positions, sizes))
    of_video = np.array([group is not None for group in frames])
    if of_video.all():  # some models mark videos with the id of pictures
        tokens_of_video = np.ones(positions.shape, bool)
    else:
        ids = inputs["input_ids"][0].cpu().numpy()[positions]
        tokens_of_video = ids != vlm.image_token_id
    all_grids: list[Grid] = []
    for kind, grids in ((False, vlm.family.grids), (True, vlm.family.video_grids)):
        numbers = np.flatnonzero(of_video == kind).tolist()
        if not numbers:
            continue
        own = positions[tokens_of_video == kind]
        prompt = _pictures(vlm, inputs, own, tuple(sizes[number] for number in numbers))
        all_grids += [replace(grid, image=numbers[grid.image]) for grid in grids(prompt)]
    return tuple(sorted(all_grids, key=lambda grid: grid.image))


@contextmanager
def recorded_layout(vlm: LVLM, prompt: Prompt) -> Iterator[Callable[[], TokenLayout]]:
    """Record while a model runs which pixels its image tokens show, where only a run says it.

    Parameters
    ----------
    vlm : LVLM
        The model.
    prompt : Prompt
        The prompt that it is going to run on inside the block.

    Yields
    ------
    function
        To be called after a forward pass: the layout with all grids that are known then.
    """
    layout = prompt.layout
    pictures = _pictures(vlm, prompt.inputs, layout.image_positions, layout.image_sizes)
    with vlm.family.recorded_grids(vlm.model, pictures) as grids_after_run:

        def layout_after_run() -> TokenLayout:
            try:
                grids = grids_after_run()
            except MapUnavailableError as unavailable:
                return replace(layout, grids_missing=str(unavailable))
            return replace(layout, grids=grids, grids_missing="") if grids else layout

        yield layout_after_run


def _pictures(
    vlm: LVLM,
    inputs: Mapping[str, torch.Tensor],
    positions: IntArray,
    sizes: tuple[tuple[int, int], ...],
) -> PromptPictures:
    return PromptPictures(positions, sizes, inputs, vlm.model.config, vlm.processor)
