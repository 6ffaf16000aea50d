"""InformationFlow: everything measured on one answer, to show, tabulate, save and load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.flow.axes import DESTINATIONS, FLAGS, WHOLE_ANSWER
from vlmflow.lvlm.geometry import paint
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout
from vlmflow.result import notebook, parts, storage, tables
from vlmflow.result.checks import (
    check_effect,
    check_grids,
    check_targets,
    checked_maps,
    display_copies,
    plural,
    read_only,
    valid_index,
    valid_target,
)
from vlmflow.result.explained_words import ExplainedWords
from vlmflow.result.map_info import MapInfo
from vlmflow.result.map_trust import Trust
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.result.picture_grids import grids_of, token_boxes
from vlmflow.result.shown_map import shown_map
from vlmflow.result.text_attention import TextAttention
from vlmflow.result.truncated_answer import TruncatedAnswer

if TYPE_CHECKING:
    import pandas as pd

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class InformationFlow:
    """What one answer draws on, measured in every decoder layer.

    Axes: ``L`` decoder layers counted from 0, ``T`` answer tokens, ``G`` targets (the whole answer,
    then, where each token was explained too, the T tokens: 1 or 1 + T), ``P`` image tokens of all
    pictures in the order of ``layout.image_positions``, ``S = 4`` segments in the order of
    ``SEGMENTS``.

    Parameters
    ----------
    model, question, prompt, answer : str
        Name of the model, question asked, text given to the processor, answer (or :attr:`words`).
    answer_tokens, targets : tuples of T and of G str
        The answer's tokens; ``"answer"``, or the words explained, then each token explained.
    layout : TokenLayout
        Segment of every position, and the pixels of every image token.
    pictures : tuple of (h, w, 3) uint8
        Copies for display, at most 1024 pixels long; ``layout.image_sizes`` has the true sizes.
    attention_share : (L, G, S) float32
        Attention flow; target 0 is the mean over the answer's rows. A layer of zeros has none.
    saliency_mean, saliency_sum : (L, G, 2, S) float32, or both None
        Saliency flow from a source segment (last axis) into the rows of a destination
        (:data:`~vlmflow.flow.axes.DESTINATIONS`), over pairs with the source before the
        destination; 0 without pairs. None where no gradient was measured.
    maps : dict of str to (L, G, P) float32
        One map per signal, layer and target; (1, G, P) where a signal sums over layers.
    flags : dict of str to (L, G) int8
        Whether each map is defined, as :data:`~vlmflow.flow.axes.FLAGS`; (1, G) for a sum.
    about : dict of str to MapInfo
        What each signal is called and comes from; its name alone where left out.
    settings : dict
        Everything that shaped the result, in JSON's own types.
    versions : dict of str to str
        Versions of the software that measured.
    picture_effect : PictureEffect, optional
        How likely the answer's tokens are with the picture, and without its tokens.
    text_attention : TextAttention, optional
        What the words of question and answer attend to.
    trust : sequence of Trust
        How far maps can be trusted, where that was tested.
    truncated : TruncatedAnswer, optional
        The answer under a truncation, and which image tokens each layer saw then.
    words : ExplainedWords, optional
        Words explained in place of the whole answer: what ends ``layout``, as its answer.

    Raises
    ------
    InputError
        If an array does not fit the layout, holds NaN or infinity, or a name is missing.
    """

    model: str
    question: str
    prompt: str
    answer: str
    answer_tokens: tuple[str, ...]
    targets: tuple[str, ...]
    layout: TokenLayout
    pictures: tuple[npt.NDArray[np.uint8], ...]
    attention_share: Float32Array
    saliency_mean: Float32Array | None
    saliency_sum: Float32Array | None
    maps: Mapping[str, Float32Array]
    flags: Mapping[str, npt.NDArray[np.int8]]
    about: Mapping[str, MapInfo] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    picture_effect: PictureEffect | None = None
    text_attention: TextAttention | None = None
    trust: Sequence[Trust] = ()
    truncated: TruncatedAnswer | None = None
    words: ExplainedWords | None = None

    def __post_init__(self) -> None:
        for name in parts.TEXTS:
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be a text, not {getattr(self, name)!r}")
        whole = WHOLE_ANSWER if self.words is None else self.words.text
        check_targets(self.answer_tokens, self.targets, self.layout, whole)
        check_effect(self.picture_effect, self.answer_tokens)
        check_grids(self.layout)
        pictures = display_copies(self.pictures, self.layout)
        shape = np.shape(self.attention_share)
        if len(shape) != 3 or shape[0] == 0:
            raise InputError(
                f"attention_share must have shape (layers, targets, segments), not {shape}"
            )
        of_segments = (shape[0], len(self.targets), len(SEGMENTS))
        of_pairs = (*of_segments[:2], len(DESTINATIONS), len(SEGMENTS))
        of_tokens = (*of_segments[:2], self.layout.image_positions.size)
        about, maps, flags = checked_maps(self.maps, self.flags, self.about, of_tokens)
        for tested in self.trust:
            tested.check(about, tuple(self.targets), self.layout)
        checked = {
            "trust": tuple(self.trust),
            "answer_tokens": tuple(self.answer_tokens),
            "targets": tuple(self.targets),
            "pictures": pictures,
            "about": about,
            "maps": maps,
            "flags": flags,
            "settings": storage.as_json(self.settings, "settings"),
            "versions": storage.as_json(self.versions, "versions"),
        }
        shapes: dict[str, tuple[int, ...]] = {"attention_share": of_segments}
        if self.saliency_mean is not None or self.saliency_sum is not None:
            shapes |= dict.fromkeys(parts.SALIENCIES, of_pairs)
        for name, shape in shapes.items():
            checked[name] = read_only(getattr(self, name), name, np.float32, shape)
        if self.text_attention is not None:
            checked["text_attention"] = self.text_attention.checked(self.layout, of_tokens[0])
        if self.truncated is not None:
            checked["truncated"] = self.truncated.checked(of_tokens[0], of_tokens[2])
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        answer = self.answer if len(self.answer) <= 60 else f"{self.answer[:59]}…"
        return (
            f"InformationFlow(model={self.model!r}, answer={answer!r}, layers={self.layers}, "
            f"image_tokens={self.layout.image_positions.size}, signals={', '.join(self.signals)})"
        )

    def _repr_html_(self) -> str:
        """Show the picture with its map, the answer and one sentence in a notebook."""
        values, caption = None, ""
        chosen = shown_map(self.about, self.flags, self.attention_share)
        if chosen is not None:
            signal, layer = chosen
            values, where = self.map(signal, layer), self.about[signal].where
            where = where if layer is None else f"layer {layer}"
            caption = f"{self.about[signal].label}, {where}"
        return notebook.answer_html(
            {name: getattr(self, name) for name in ("model", "question", "answer", "subject")},
            self.layout,
            self.pictures,
            self.attention_share,
            values,
            caption,
        )

    @property
    def subject(self) -> str:
        """What is explained: ``the answer``, or as in ``the word “left” of the question``."""
        return "the answer" if self.words is None else self.words.phrase

    @property
    def layers(self) -> int:
        """Number of decoder layers L."""
        return int(self.attention_share.shape[0])

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the maps, in the order they were measured."""
        return tuple(self.maps)

    def map(self, signal: str, layer: int | None = None, target: int | str = 0) -> Float32Array:
        """Return one map over all image tokens.

        Parameters
        ----------
        signal : str
            One of :attr:`signals`.
        layer : int, optional
            Decoder layer, counted from 0; leave it out for a signal summed over layers.
        target : int or str
            0 or ``"answer"`` is the whole answer, or the words that are explained; t is the t-th of
            its tokens counted from 1, or that token's text where it occurs once.

        Returns
        -------
        (P,) float32, read-only
            NaN where the map is not defined (:meth:`flag`): 0 would look like a finding.

        Raises
        ------
        InputError
            If there is no such signal, layer or target; it names the ones there are.
        """
        row, column = self._place(signal, layer, target)
        values: Float32Array = self.maps[signal][row, column]
        if self.flag(signal, layer, target) not in ("ok", "empty"):
            values = np.full_like(values, np.nan)
            values.setflags(write=False)
        return values

    def flag(self, signal: str, layer: int | None = None, target: int | str = 0) -> str:
        """Say whether a map is defined: one of :data:`~vlmflow.flow.axes.FLAGS`."""
        row, column = self._place(signal, layer, target)
        return FLAGS[int(self.flags[signal][row, column])]

    def grid(
        self,
        signal: str,
        layer: int | None = None,
        target: int | str = 0,
        image: int = 0,
        *,
        kind: str | None = None,
    ) -> Float32Array:
        """Return one map as the picture's grid, ``(rows, cols)``: a value per token or patch.

        Parameters are those of :meth:`map`, the picture's index, and the kind of grid where a
        picture is seen twice (``"tiles"``, ``"thumbnail"``). Raises InputError also if the picture
        has no grid, or several (name one, or use :meth:`pixel_map`).
        """
        values = self.map(signal, layer, target)
        grids = grids_of(self.layout, image, kind)
        if len(grids) > 1:
            kinds = ", ".join(repr(grid.kind) for grid in grids)
            raise InputError(
                f"image={image} is cut into {len(grids)} grids of tokens; name one with kind= "
                f"({kinds}), or use pixel_map"
            )
        painted = grids[0].values(values.astype(np.float64), self.layout.image_positions)
        return painted.astype(np.float32)

    def pixel_map(
        self,
        signal: str,
        layer: int | None = None,
        target: int | str = 0,
        image: int = 0,
        *,
        kind: str | None = None,
    ) -> Float32Array:
        """Paint one map over the original picture's pixels, ``(height, width)``.

        Each token's value fills its box, the mean by area where boxes overlap, or is spread over
        the patches that it covers; NaN where there is no token (cropped away). Parameters are those
        of :meth:`map`, the picture's index, and the kind of grid to paint alone where a picture is
        seen twice (``"tiles"``, ``"thumbnail"``); all together where left out. Raises InputError
        also if the picture's pixels under the tokens are not known.
        """
        values = self.map(signal, layer, target)
        return paint(grids_of(self.layout, image, kind), values, self.layout, image)

    def token_boxes(self, image: int = 0) -> npt.NDArray[np.float64]:
        """Return the box of every image token in one picture's original pixels: (P, 4) float64.

        ``x0, y0, x1, y1``; NaN for tokens that have no place of their own in this picture.

        Raises
        ------
        InputError
            If there is no such picture or the pixels under its tokens are not known.
        """
        return token_boxes(self.layout, image)

    def map_info(self, signal: str) -> MapInfo:
        """Return what a signal is called, shows and comes from; InputError if there is none."""
        if signal not in self.about:
            raise InputError(
                f"signal={signal!r}, but this result has {', '.join(self.signals) or 'no maps'}"
            )
        return self.about[signal]

    def _place(self, signal: str, layer: int | None, target: int | str) -> tuple[int, int]:
        """Row and column of a map in its array."""
        about = self.map_info(signal)
        column = valid_target(target, self.targets)
        if about.summed is not None:
            if layer is not None:
                raise InputError(
                    f"layer={layer!r}, but signal={signal!r} is {about.where}: leave layer out"
                )
            return 0, column
        if layer is None:
            raise InputError(
                f"signal={signal!r} has one map per layer: name a layer (0..{self.layers - 1})"
            )
        has = f"this model has {plural(self.layers, 'decoder layer')}"
        return valid_index("layer", layer, self.layers, has), column

    def segment_frame(self) -> pd.DataFrame:
        """Give attention flow as a tidy table, one row per layer, target and segment.

        Columns are ``layer, target, token, segment, attention_share``; the share is missing (NaN)
        where the layer has no attention.
        """
        return tables.segment_frame(self.targets, self.attention_share)

    def saliency_frame(self) -> pd.DataFrame:
        """Give saliency flow as a tidy table, one row per layer, target, source and destination.

        Columns are ``layer, target, token, source, destination, mean, sum``; both figures are
        missing (NaN) where the layer has no attention.

        Raises
        ------
        InputError
            If no gradient was measured.
        """
        if self.saliency_sum is None or self.saliency_mean is None:
            raise InputError("this result was measured without gradients: no saliency flow")
        return tables.saliency_frame(
            self.targets, self.attention_share, self.saliency_sum, self.saliency_mean
        )

    def convergence_frame(
        self, box: Sequence[float] | None = None, *, image: int = 0
    ) -> pd.DataFrame:
        """Say how concentrated every map is, one row per signal, layer and target.

        Parameters
        ----------
        box : sequence of 4 floats, optional
            ``x0, y0, x1, y1`` of an object in the original picture's pixels; adds ``inside_mass``.
        image : int
            The picture that ``box`` lies in.

        Returns
        -------
        DataFrame
            ``signal, layer, target, token, entropy, top10_mass[, inside_mass], flag``. ``layer`` is
            missing for a signal summed over layers. Figures are missing (NaN) exactly where
            ``flag`` is not ``"ok"``. See :mod:`vlmflow.result.convergence` for the definitions.

        Raises
        ------
        InputError
            If ``box`` is not a box, or ``image`` not a picture whose tokens have known pixels.
        """
        inside = None
        if box is not None:
            inside = partial(tables.mass_inside, self.layout, self.token_boxes(image), image, box)
            # a bad box must be refused even where every map is flagged
            inside(np.zeros(self.layout.image_positions.size))
        summed = [signal for signal, about in self.about.items() if about.summed is not None]
        return tables.convergence_frame(self.targets, self.maps, self.flags, summed, inside)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``flow.json`` and ``flow.safetensors`` into a directory, both or neither.

        Returns the directory. Raises InputError if it cannot be written.
        """
        return storage.write_pair(directory, *parts.take_apart(vars(self)))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> InformationFlow:
        """Read what :meth:`save` wrote, bit for bit.

        Raises
        ------
        InputError
            If a file is missing, damaged, of an unknown version or not a result.
        """
        body, arrays = storage.read_pair(directory)
        try:
            return cls(**parts.put_together(body, arrays))
        except InputError as error:
            raise InputError(f"{os.fspath(directory)!r} holds no result: {error}") from error
