"""What is measured of every sample: curves of every map, where it lies, and how maps agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.result.information_flow import InformationFlow
from vlmflow.statistics.rank_correlation import spearman
from vlmflow.studies.faithfulness.maps import TokenMap, control_maps, explained, signal_map
from vlmflow.studies.faithfulness.settings import CALIBRATION_STEPS, TOKENS, FaithfulnessSettings
from vlmflow.tasks.base import TaskSample
from vlmflow.trust.controls import CONTROLS
from vlmflow.trust.curves import both_ways, picture_steps, token_steps
from vlmflow.trust.localisation import (
    RESULTS,
    Box,
    cells_inside,
    cells_of,
    energy_inside,
    pixels_inside,
    pointing,
    tam_scores,
)
from vlmflow.trust.passes import Passes
from vlmflow.trust.scoring import answer_logprobs, logprobs_with_tokens
from vlmflow.trust.variants import curves_of, token_means
from vlmflow.trust.words import words_of

FloatArray = npt.NDArray[np.float64]
Layers = Mapping[str, int | None]
"""Of every signal the layer of its map; None where there is one map for all layers."""

PLACES = ("result", "energy", "object iou", "function iou")
"""What is known of a map's place: index into :data:`RESULTS`, and three shares."""


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """What was measured of one sample with an answer.

    ``M`` maps: the signals', then the controls.
    """

    maps: tuple[str, ...]
    flags: tuple[str, ...]  # Of every map
    tokens: tuple[str, ...]  # The answer's, as text
    ids: tuple[int, ...]  # The same, as the model gave them
    # Per replacement (M, 3, 2, steps + 1): what token_means gives of every map
    means: Mapping[str, FloatArray]
    agreement: FloatArray  # (M, M): rank correlation over image tokens; NaN where a map is constant
    places: FloatArray | None  # (M, 4): PLACES; NaN where one has none. None without a box
    without: float  # Mean probability of the answer's tokens without any image token; NaN: unknown
    values: FloatArray  # (M, P): the maps themselves
    # Pictures, or subsets of tokens, to a forward pass; None: measured before that was recorded
    batch: int | None = None


@dataclass(frozen=True, eq=False)
class SampleFaithfulness:
    """One sample: its answer, and what was measured; or why it failed."""

    sample: TaskSample
    answer: str  # Empty where the model ended at once, and then nothing else is measured
    measured: Faithfulness | None = None
    failure: str | None = None
    score: float = field(default=float("nan"))  # The task's; NaN where the sample failed


class Appearing:
    """The curves of any maps of one answered prompt.

    Parameters
    ----------
    vlm, prompt, question : LVLM, Prompt, str
        What is answered; the prompt carries the answer.
    settings : FaithfulnessSettings
        Whether regions come whole.
    seed : int
        Breaks ties.
    passes : dict of str to Passes
        Of every replacement, how much goes to a forward pass.
    """

    def __init__(
        self,
        vlm: LVLM,
        prompt: Prompt,
        question: str,
        settings: FaithfulnessSettings,
        seed: int,
        passes: Mapping[str, Passes],
    ) -> None:
        self.vlm, self.prompt, self.question = vlm, prompt, question
        self.settings, self.seed, self.passes = settings, seed, passes

    @property
    def batch(self) -> int:
        """How much goes to a forward pass by what is known now: under all replacements."""
        return min(own.room(len(self.prompt.layout)) for own in self.passes.values())

    def means(self, chosen: TokenMap, replacement: str, steps: int) -> FloatArray:
        """Return :func:`token_means` of a map: (3, 2, steps + 1)."""
        passes = self.passes[replacement]
        if replacement == TOKENS:
            shown = token_steps(chosen.values, steps, self.seed)
            scores = logprobs_with_tokens(self.vlm, self.prompt, shown, passes)
        else:
            sets = picture_steps(
                self.prompt.visuals,
                chosen.painted,
                frames=self.prompt.layout.frames,
                replacement=replacement,
                steps=steps,
                seed=self.seed,
                regions=self.settings.regions,
            )
            scores = answer_logprobs(
                self.vlm, sets, self.question, self.prompt.answer_ids, passes=passes
            )
        return token_means(*both_ways(scores, steps))


def layer_differences(
    vlm: LVLM,
    prompt: Prompt,
    question: str,
    signals: Mapping[str, Signal],
    layers: Mapping[str, Sequence[int | None]],
    appearing: Appearing,
) -> dict[str, dict[str, list[float]]]:
    """Measure insertion minus deletion of every signal at every layer that is tried.

    Returns
    -------
    dict of str to dict
        Of every signal ``differences``, and ``defined``: 1 where its map ranks anything, else 0.
    """
    settings = appearing.settings
    low = settings.low_memory
    flow = explained(vlm, prompt, question, signals, per_token=False, low_memory=low)
    steps = min(CALIBRATION_STEPS, settings.count)
    measured: dict[str, dict[str, list[float]]] = {}
    for name, tried in layers.items():
        measured[name] = {"differences": [], "defined": []}
        for layer in tried:
            chosen = signal_map(flow, name, layer)
            curves = curves_of("probability", appearing.means(chosen, settings.shown[0], steps))
            assert curves is not None
            measured[name]["differences"].append(curves.difference)
            measured[name]["defined"].append(float(chosen.flag == "ok"))
    return measured


def measure_maps(
    vlm: LVLM,
    prompt: Prompt,
    sample: TaskSample,
    signals: Mapping[str, Signal],
    layers: Layers,
    appearing: Appearing,
) -> Faithfulness:
    """Measure every map of an answered prompt, and every control."""
    settings = appearing.settings
    if sample.box is not None and any(prompt.layout.frames):
        raise InputError(
            "the sample has a box, which says where in a picture the answer is, but not when in a "
            "video; leave the box out"
        )
    flow = explained(
        vlm,
        prompt,
        sample.question,
        signals,
        per_token=sample.box is not None,
        low_memory=settings.low_memory,
    )
    maps = {name: signal_map(flow, name, layer) for name, layer in layers.items()}
    maps |= control_maps(flow.layout, prompt.images, appearing.seed)
    means = {
        replacement: np.stack(
            [appearing.means(chosen, replacement, settings.count) for chosen in maps.values()]
        )
        for replacement in settings.shown
    }
    effect = flow.picture_effect
    return Faithfulness(
        maps=tuple(maps),
        flags=tuple(chosen.flag for chosen in maps.values()),
        tokens=flow.answer_tokens,
        ids=prompt.answer_ids,
        means=means,
        agreement=_agreement([chosen.values for chosen in maps.values()]),
        places=None if sample.box is None else _places(flow, maps, layers, sample.box),
        without=float("nan") if effect is None else float(effect.without_picture.mean()),
        values=np.stack([chosen.values for chosen in maps.values()]),
        batch=appearing.batch,
    )


def agreement_with(
    vlm: LVLM,
    prompt: Prompt,
    question: str,
    signals: Mapping[str, Signal],
    layers: Layers,
    trained: Mapping[str, FloatArray],
    *,
    low_memory: bool,
) -> dict[str, float | None]:
    """Correlate the maps of a model with drawn weights with the trained model's, by rank."""
    flow = explained(vlm, prompt, question, signals, per_token=False, low_memory=low_memory)
    return {
        name: spearman(signal_map(flow, name, layer).values, trained[name])
        for name, layer in layers.items()
    }


def _agreement(values: Sequence[FloatArray]) -> FloatArray:
    """Rank correlations between maps over image tokens; NaN where one of the two is constant."""
    agreement = np.eye(len(values))
    for first, second in combinations(range(len(values)), 2):
        rank = spearman(values[first], values[second])
        both = float("nan") if rank is None else rank
        agreement[first, second] = agreement[second, first] = both
    return agreement


def _places(
    flow: InformationFlow, maps: Mapping[str, TokenMap], layers: Layers, box: Box
) -> FloatArray:
    """Play the pointing game with every map, and score where its parts lie: (M, 4)."""
    layout = flow.layout
    inside = cells_inside(layout.grids, box)
    mask = pixels_inside(box, layout.image_sizes[0])
    words = words_of(flow.answer_tokens)
    places = np.full((len(maps), len(PLACES)), np.nan)
    for row, (name, chosen) in enumerate(maps.items()):
        cells = cells_of(layout.grids, chosen.values, layout.image_positions)
        places[row, 0] = RESULTS.index(pointing(cells, inside))
        # An empty map holds nothing anywhere.
        places[row, 1] = energy_inside(chosen.painted[0], mask) or 0.0
        tokens = len(flow.targets) > 1 and name not in CONTROLS
        spoken: dict[bool, list[list[FloatArray]]] = {False: [], True: []}
        for word in words:
            targets = [1 + token for token in word.tokens] if tokens else [0]
            spoken[word.is_function].append(
                [
                    signal_map(flow, name, layers[name], target).painted[0]
                    if tokens
                    else chosen.painted[0]
                    for target in targets
                ]
            )
        tam = tam_scores(spoken[False], spoken[True], mask)
        for column, value in ((2, tam.object_iou), (3, tam.function_iou)):
            places[row, column] = np.nan if value is None else value
    return places
