"""What a request costs a server with and without a policy, computed from the model's config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import InputError
from vlmflow.parameters import check_integer
from vlmflow.serving.cache_sizes import CacheSizes
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.flops import DecoderShape, layer_flops, tokens_per_layer
from vlmflow.truncation.truncation import Truncation

USABLE = 0.9
"""Share of the memory for weights and caches; servers leave the rest to activations."""


@dataclass(frozen=True)
class Request:
    """A typical prompt, and how long its answer gets."""

    text: int
    image: int
    answer: int

    def __post_init__(self) -> None:
        check_integer("text tokens", self.text, 1)
        check_integer("image tokens", self.image, 1)
        check_integer("answer tokens", self.answer, 1)


@dataclass(frozen=True)
class ServedRequest:
    """One request as a server would hold it.

    Parameters
    ----------
    name : str
        ``"untouched"``, ``"truncated"``, or where it left.
    exit_layer : int or None
        Layer at which an exit policy let it go; None otherwise.
    prompt_tokens : tuple of int
        Tokens of the prompt in each layer's cache.
    layer_bytes : tuple of int
        Bytes of keys and values by layer, prompt and answer.
    decoder_share : float
        Operations of the decoder's prefill as a share of the untouched ones.
    """

    name: str
    exit_layer: int | None
    prompt_tokens: tuple[int, ...]
    layer_bytes: tuple[int, ...]
    decoder_share: float

    @property
    def cache_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(self.layer_bytes)


def weight_bytes(model: Any, value_bytes: int) -> int:
    """Return the size of a model's weights, shared ones once, at so many bytes a number."""
    count: int = sum(weights.numel() for weights in model.parameters())
    return count * value_bytes


def concurrent(memory: float, weights: int, cache: int) -> int:
    """Return how many requests of a size fit into a memory of so many bytes at once."""
    return max(0, int((USABLE * memory - weights) // cache))


def served_requests(
    model: Any,
    layers: Any,
    policy: Truncation | ExitPolicy,
    request: Request,
    value_bytes: int,
) -> tuple[ServedRequest, ...]:
    """Compute the untouched request, then the truncated one, or one per exit.

    Raises
    ------
    InputError
        If the policy does not fit the model or the request.
    ModelError
        If the model's cache is not keys and values of every head.
    """
    policy.check_layers(len(layers), type(model).__name__)
    sizes = CacheSizes.of(model, layers, value_bytes)
    shape = DecoderShape.of(model, layers)
    whole = shape.layers * layer_flops(shape, request.text + request.image)
    rows = []
    for name, exit_layer, removal in _ways(policy):
        tokens = tokens_per_layer(removal, shape, request.text, request.image)
        held = [count + request.answer for count in tokens]
        rows.append(
            ServedRequest(
                name=name,
                exit_layer=exit_layer,
                prompt_tokens=tuple(tokens),
                layer_bytes=sizes.layer_bytes(held),
                decoder_share=sum(layer_flops(shape, count) for count in tokens) / whole,
            )
        )
    return tuple(rows)


def _ways(
    policy: Truncation | ExitPolicy,
) -> Iterator[tuple[str, int | None, Truncation | None]]:
    """Name what may happen to a request, and what is removed then."""
    yield "untouched", None, None
    if isinstance(policy, ExitPolicy):
        for stage in policy.stages:
            yield f"leaves at layer {stage.layer}", stage.layer, policy.applied(stage.layer)
    else:
        yield "truncated", None, policy


def gigabytes(text: float) -> float:
    """Return bytes of a memory given in GB (10^9); InputError where it is not positive."""
    if not 0 < text < 1e6:
        raise InputError(f"memory={text} GB; give the accelerator's memory, such as 24 or 80")
    return text * 1e9
