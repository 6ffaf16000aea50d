"""The seam between LVLM architectures: which pixels each image token came from.

To add a family: subclass :class:`Family` in a notebook cell or a package of your own, and hand it
to :func:`vlmflow.register_family`. Everything else (segments, rows, signals, truncation) reads the
:class:`TokenLayout` and needs no change. docs/adding-a-family.md follows one, and says what goes
where to ship one with vlmflow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlmflow.lvlm.families.execution import Execution
from vlmflow.lvlm.geometry import MapUnavailableError
from vlmflow.lvlm.grids import FloatArray, Grid, ImageGrid, IntArray


@dataclass(frozen=True)
class PromptPictures:
    """What a family is given: one prompt as the processor expanded it.

    Parameters
    ----------
    positions : (P,) int64
        Positions of all image tokens in the expanded sequence, in order.
    image_sizes : tuple of (width, height)
        Original size of every picture in pixels, in the order of the prompt.
    inputs : mapping of str to tensor
        The processor's output (``pixel_values``, ``image_sizes``, ...).
    config, processor : object
        The model's configuration and processor; neither is to be changed.
    """

    positions: IntArray
    image_sizes: tuple[tuple[int, int], ...]
    inputs: Mapping[str, Any]
    config: Any
    processor: Any


def token_runs(positions: IntArray, counts: Sequence[int]) -> list[IntArray]:
    """Cut the positions of a prompt's image tokens, (P,) in order, into the runs of its pictures.

    ``counts`` says how many tokens each picture has.

    Raises
    ------
    MapUnavailableError
        If these are not as many as there are positions.
    """
    if sum(counts) != positions.size:
        raise MapUnavailableError(
            f"no map over pixels: the prompt has {positions.size} image tokens, but its pictures "
            f"give {' + '.join(map(str, counts))}"
        )
    return [np.asarray(run) for run in np.split(positions, np.cumsum(counts)[:-1])]


def places_in(shapes: Iterable[Sequence[int]], first: int, tokens: int) -> FloatArray | None:
    """Say where a prompt's tokens stand in the grids of a batch; see :meth:`Family.places`.

    ``shapes`` are (rows, cols) of all pictures of the batch, in order. ``first`` is the number of
    tokens before the prompt's, ``tokens`` that of the prompt's own.
    """
    grids: list[FloatArray] = []
    begin = 0
    for rows, cols in shapes:
        if first <= begin < first + tokens:
            places = np.indices((rows, cols), dtype=np.float64).reshape(2, -1).T
            grids.append(np.insert(places, 0, len(grids), axis=1))
        begin += rows * cols
    if not grids or sum(map(len, grids)) != tokens:
        return None
    return np.concatenate(grids)


def setting(processor: Any, name: str) -> Any:
    """Read a setting of an image processor (``"do_resize"``): the processor's, or else its own."""
    overrides: Mapping[str, Any] = getattr(processor, "images_kwargs", None) or {}
    return overrides[name] if name in overrides else getattr(processor.image_processor, name, None)


class Family(ABC):
    """What differs between LVLM architectures: where image tokens are, and which pixels they show.

    Only :meth:`grids` has to be written.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    """``config.model_type`` of the models that belong to a built-in family."""

    answer_inputs: ClassVar[Mapping[str, int]] = {}
    """What inputs with one entry per token hold at an answer's tokens, where it is not 0."""

    pictures_in_prompt: ClassVar[bool] = True
    """Whether a placeholder in the prompt says where a picture goes; else the processor puts the
    image tokens of one picture before the text."""

    bare_lead: ClassVar[str | None] = None
    """Where the processor has no chat template: None: the prompt is LLaVA-1.5's; else it is the
    question as it stands, with this white space before an answer."""

    takes_videos: ClassVar[bool] = False
    """Whether :meth:`video_grids` knows the pixels of a video's image tokens."""

    @abstractmethod
    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Say which image tokens show which picture, and the box of each in its pixels.

        Returns
        -------
        tuple of ImageGrid
            One or more per picture, in the order of the prompt. Image tokens that show no place
            (a class token, a line break) are in no grid.

        Raises
        ------
        MapUnavailableError
            If the boxes are not known; the prompt then gets a layout without grids.
        """

    def frames_together(self, processor: Any) -> int:
        """Say how many frames of a video share each grid of image tokens."""
        del processor  # one token never shows more than one frame, unless a family says so
        return 1

    def reads_question(self, inputs: Mapping[str, Any]) -> bool:
        """Tell whether a prompt's image tokens are made with its question in view.

        Its words cannot be explained then: the picture's features would give them away.
        """
        del inputs  # towers see pixels alone, unless a family says so
        return False

    def check_videos(self, frames: Sequence[int], pictures: int) -> None:
        """Refuse what transformers' code of the model does not take in one prompt.

        ``frames`` holds the number of frames of each video, ``pictures`` is the number of pictures
        beside them.

        Raises
        ------
        InputError
            Saying what it takes.
        """
        del frames, pictures  # most take everything

    def video_grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Say the same as :meth:`grids` of the videos of a prompt.

        The prompt has the positions of the videos' tokens alone. Each group of frames that share
        tokens counts as a picture.
        """
        raise MapUnavailableError(
            f"no map over pixels: it is not known which frames of a video the image tokens of "
            f"{prompt.config.model_type!r} come from"
        )

    def image_settings(self, processor: Any, config: Any, tokens: int) -> Mapping[str, Any] | None:
        """Choose an image processor's settings with which no picture takes more image tokens.

        Returns settings in place of the processor's own, those with which a picture is shown
        largest; None where the number cannot be chosen, or every setting gives more.
        """
        del processor, config, tokens
        return None  # most models see every picture at one size

    @contextmanager
    def recorded_grids(
        self, model: Any, prompt: PromptPictures
    ) -> Iterator[Callable[[], tuple[Grid, ...]]]:
        """Record grids that only a run of the model says; most families do not need it.

        The prompt is the one that the model is going to run on, in a batch of one; the model is
        left as it was found.
        Yields a function to be called after a forward pass, which returns the grids, or nothing; it
        raises :class:`MapUnavailableError` as :meth:`grids` does.
        """
        del model, prompt
        yield tuple

    @property
    def has_recorded_grids(self) -> bool:
        """Whether :meth:`recorded_grids` follows a run, which is then of a single prompt."""
        return type(self).recorded_grids is not Family.recorded_grids

    def execution(self, config: Any) -> Execution:
        """Say how a model of the family with this configuration runs."""
        vision = getattr(config, "vision_config", None)
        deepstack = getattr(vision, "deepstack_visual_indexes", None) or ()
        return Execution(late_features=len(deepstack))

    def places(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> FloatArray | None:
        """Say where the image tokens of one prompt stand, from the model's inputs alone.

        Parameters
        ----------
        first, tokens : int
            Image tokens of the batch's prompts before this one, and of this one.
        inputs : mapping
            What the model's forward was called with, for a whole batch.
        config : object
            The model's configuration.

        Returns
        -------
        (tokens, 3) float64 or None
            Picture, row and column of each, in patches; None where that is not known.
        """
        del first, tokens, inputs, config  # only families know
        return None

    def picture_numbers(
        self, first: int, tokens: int, inputs: Mapping[str, Any], config: Any
    ) -> IntArray | None:
        """Say which picture, or group of a video's frames, each image token of a prompt is of.

        Parameters are those of :meth:`places`, which says it by default.

        Returns
        -------
        (tokens,) int64 or None
            Counted from 0 in the order of the prompt; None where that is not known.
        """
        places = self.places(first, tokens, inputs, config)
        return None if places is None else places[:, 0].astype(np.int64)


class UnknownFamily(Family):
    """Any LVLM with image tokens: every signal over tokens works, maps over pixels do not."""

    def grids(self, prompt: PromptPictures) -> tuple[ImageGrid, ...]:
        """Raise: nothing is known about the pixels."""
        raise MapUnavailableError(
            f"no map over pixels: models of type {prompt.config.model_type!r} have no family "
            "that says which pixels their image tokens come from; "
            "vlmflow.register_family adds one (docs/adding-a-family.md)"
        )
