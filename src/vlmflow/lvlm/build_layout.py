"""From a processor's output to the layout of its positions, before a model runs and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vlmflow.errors import ModelError
from vlmflow.lvlm.families import Family, PromptPictures
from vlmflow.lvlm.geometry import MapUnavailableError
from vlmflow.lvlm.grids import Grid
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import token_texts
from vlmflow.lvlm.videos import Frames


def build_layout(
    inputs: Mapping[str, torch.Tensor],
    sizes: tuple[tuple[int, int], ...],
    frames: tuple[Frames | None, ...],
    *,
    image_token_ids: tuple[int, ...],
    family: Family,
    config: Any,
    processor: Any,
    name: str,
) -> TokenLayout:
    """Lay out a prompt without an answer, from the processor's output (batch of one).

    ``sizes`` holds (width, height) of the original pictures in pixels, in the order of the prompt;
    ``frames`` is that of :class:`TokenLayout`. ``image_token_ids`` starts with the pictures' own.
    ``name`` is what messages call the model.

    Raises
    ------
    ModelError
        If there are no image tokens.
    """
    ids = inputs["input_ids"][0].cpu().numpy()
    is_image = np.isin(ids, image_token_ids)
    if not is_image.any():
        raise ModelError(
            f"the processor of {name} put no image tokens into the prompt: processor and "
            "model do not belong together"
        )
    segments = np.full(ids.shape, Segment.USER, dtype=np.int8)
    segments[: int(is_image.argmax())] = Segment.SYSTEM
    segments[is_image] = Segment.IMAGE
    pictures = PromptPictures(np.flatnonzero(is_image), sizes, inputs, config, processor)
    grids: tuple[Grid, ...] = ()
    missing = ""
    try:
        grids = _grids(family, pictures, frames, image_token_ids[0])
    except MapUnavailableError as unavailable:
        missing = str(unavailable)
    tokens = token_texts(processor.tokenizer, ids.tolist())
    return TokenLayout(segments, tokens, sizes, grids, missing, frames)


def _grids(
    family: Family,
    pictures: PromptPictures,
    frames: tuple[Frames | None, ...],
    picture_token_id: int,
) -> tuple[Grid, ...]:
    """Ask the family about pictures and about videos, each apart from the others' tokens."""
    if not frames:
        return family.grids(pictures)
    positions = pictures.positions
    of_video = np.array([group is not None for group in frames])
    if of_video.all():  # some models mark videos with the id of pictures
        tokens_of_video = np.ones(positions.shape, bool)
    else:
        ids = pictures.inputs["input_ids"][0].cpu().numpy()[positions]
        tokens_of_video = ids != picture_token_id
    all_grids: list[Grid] = []
    for kind, grids in ((False, family.grids), (True, family.video_grids)):
        numbers = np.flatnonzero(of_video == kind).tolist()
        if not numbers:
            continue
        own = replace(
            pictures,
            positions=positions[tokens_of_video == kind],
            image_sizes=tuple(pictures.image_sizes[number] for number in numbers),
        )
        all_grids += [replace(grid, image=numbers[grid.image]) for grid in grids(own)]
    return tuple(sorted(all_grids, key=lambda grid: grid.image))


@contextmanager
def recorded_layout(
    model: Any, processor: Any, family: Family, prompt: Prompt
) -> Iterator[Callable[[], TokenLayout]]:
    """Record while a model runs on a prompt which pixels its image tokens show.

    Some families only know it then. Yields a function to be called after a forward pass: the layout
    with all grids that are known by then.
    """
    layout = prompt.layout
    pictures = PromptPictures(
        layout.image_positions, layout.image_sizes, prompt.inputs, model.config, processor
    )
    with family.recorded_grids(model, pictures) as grids_after_run:

        def layout_after_run() -> TokenLayout:
            try:
                grids = grids_after_run()
            except MapUnavailableError as unavailable:
                return replace(layout, grids_missing=str(unavailable))
            return replace(layout, grids=grids, grids_missing="") if grids else layout

        yield layout_after_run
