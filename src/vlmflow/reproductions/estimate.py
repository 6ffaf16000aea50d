"""What running a table takes, before anything is loaded: passes, operations, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmflow.errors import ModelError
from vlmflow.reproductions.published import PublishedData
from vlmflow.reproductions.request import Request
from vlmflow.reproductions.run import BATCH, faithfulness_settings
from vlmflow.serving.cache_sizes import CacheSizes
from vlmflow.serving.estimate import USABLE, weight_bytes
from vlmflow.studies.faithfulness.settings import CALIBRATION_STEPS
from vlmflow.truncation.flops import DecoderShape, layer_flops, tokens_per_layer
from vlmflow.truncation.truncation import Truncation
from vlmflow.trust.controls import CONTROLS

WIDTHS, INNER = 12, 4
"""Numbers that one decoder layer holds per token at once, at most: so many times its width, and so
many times its MLP's: states, norms in float32, queries, keys, values, gate and product."""


@dataclass(frozen=True)
class DataEstimate:
    """One data set."""

    data: PublishedData
    samples: int
    steps: int  # Samples that are measured, those included on which something is chosen
    arms: int  # Answers to each sample; of maps: maps, controls included
    forwards: int  # Decoder prefills
    prompt: int  # Tokens
    operations: float  # Of all prefills
    cache: int | None  # Bytes at once; None: not counted for this kind of decoder
    activations: int  # Bytes at once


@dataclass(frozen=True)
class Estimate:
    """All of a table that is run.

    Parameters
    ----------
    weights : int
        Bytes, exact.
    data : tuple of DataEstimate
        In the table's order.
    memory : float
        The card's, in bytes.
    """

    weights: int
    dtype: str
    data: tuple[DataEstimate, ...]
    memory: float

    def needed(self, part: DataEstimate) -> int:
        """Return the bytes that a data set needs at once."""
        return self.weights + (part.cache or 0) + part.activations

    def fits(self, part: DataEstimate) -> bool:
        """Whether that is within nine tenths of the card, the rest being the runtime's own."""
        return self.needed(part) <= USABLE * self.memory


def estimate(request: Request, model: Any, layers: Any, dtype: Any, memory: float) -> Estimate:
    """Estimate from a model without weights (:func:`vlmflow.lvlm.skeleton.open_skeleton`).

    Raises
    ------
    InputError
        If a truncation does not fit the model.
    ModelError
        If the model is of another type than the one it stands for.
    """
    request.check_config(model.config)
    size = dtype.itemsize
    parts = tuple(_of_data(request, data, model, layers, size) for data in request.data)
    name = str(dtype).removeprefix("torch.")
    return Estimate(weight_bytes(model, size), name, parts, memory)


def _of_data(
    request: Request, data: PublishedData, model: Any, layers: Any, size: int
) -> DataEstimate:
    shape = DecoderShape.of(model, layers)
    samples, image = request.count(data), request.published_model.image_tokens * data.pictures
    prompt = data.text_tokens + image
    per_token = (WIDTHS * shape.width + INNER * shape.intermediate) * size
    signals = request.signals(data)
    if signals:
        settings = faithfulness_settings(samples, request.seed)
        maps = len(signals) + len(CONTROLS)
        tried = len(settings.layers_of(shape.layers)) * len(signals)
        chosen = min(CALIBRATION_STEPS, settings.count) * settings.calibration * tried
        pictures = 2 * (settings.count * samples * maps + chosen)
        tokens = prompt + data.answer_tokens
        held = BATCH * tokens * (per_token + 4 * shape.vocabulary)
        # Every layer's input stays for the backward pass.
        held = max(held, tokens * (per_token + shape.layers * shape.width * size))
        operations = float(pictures) * shape.layers * layer_flops(shape, tokens)
        steps = samples + settings.calibration
        return DataEstimate(data, samples, steps, maps, pictures, prompt, operations, 0, held)
    policies = [Truncation.parse(policy) for policy in request.policies(data)]
    for policy in policies:
        policy.check_layers(shape.layers, request.model_name)
    arms = [None, Truncation(0, 0), *(p for p in policies if p != Truncation(0, 0))]
    seen = [tokens_per_layer(policy, shape, data.text_tokens, image) for policy in arms]
    operations = float(samples) * sum(layer_flops(shape, count) for arm in seen for count in arm)
    longest = data.max_new_tokens or data.answer_tokens
    tokens_held = [[count + longest for count in arm] for arm in seen]
    try:
        sizes = CacheSizes.of(model, layers, size)
        cache = sum(sum(sizes.layer_bytes(arm)) for arm in tokens_held)
    except ModelError:
        cache = None
    return DataEstimate(
        data,
        samples,
        samples + 1,
        len(arms),
        samples * len(arms),
        prompt,
        operations,
        cache,
        prompt * per_token,
    )
