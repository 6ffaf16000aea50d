"""What a prefill costs in floating-point operations: FastV's formula, and an exact count.

A multiply-add counts as two operations, as ``torch.utils.flop_counter`` counts. Norms,
activations, rotary embeddings and softmax are left out on both sides: they are linear in the width
where matrix products are quadratic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from vlmflow.errors import InputError, ModelError
from vlmflow.truncation.policy import Policy
from vlmflow.truncation.rankings.ranking import RankingSize
from vlmflow.truncation.truncation import Truncation


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, named as in transformers' configs."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    mlp_matrices: int  # 3 for gated MLPs, 2 for plain ones

    @classmethod
    def of(cls, model: Any, layers: Any) -> DecoderShape:
        """Read a model's config and its first decoder layer.

        Raises
        ------
        ModelError
            If the config names no usual sizes.
        """
        config = model.config.get_text_config()
        mlp = getattr(layers[0], "mlp", None)
        try:
            width, heads = int(config.hidden_size), int(config.num_attention_heads)
            return cls(
                layers=len(layers),
                width=width,
                heads=heads,
                key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
                head_dim=int(getattr(config, "head_dim", None) or width // heads),
                intermediate=int(config.intermediate_size),
                vocabulary=int(config.vocab_size),
                mlp_matrices=3 if mlp is None else sum(p.ndim == 2 for p in mlp.parameters()),
            )
        except AttributeError as error:
            raise ModelError(f"cannot count FLOPs of {type(model).__name__}: {error}") from error


def tokens_per_layer(
    policy: Policy | None, shape: DecoderShape, text: int, image: int
) -> list[int]:
    """Count the tokens that each layer sees of a prompt of ``text + image`` tokens."""
    if policy is not None and policy.exit_signal is not None:
        raise InputError(
            "what an exit policy removes depends on the prompt; count what it applied to one"
        )
    counts, left = [text + image] * shape.layers, image
    for stage in () if policy is None else policy.stages:
        kept = stage.keep.of(image) + int(policy is not None and policy.remainder == "average")
        left = min(left, kept)
        counts[stage.layer :] = [text + left] * len(counts[stage.layer :])
    return counts


def formula_share(shape: DecoderShape, tokens: Sequence[int], before: int) -> float:
    """FastV's formula (Chen et al. 2024, eq. 5) as a share of the untouched prefill.

    ``C(n) = 4 n d^2 + 2 n^2 d + 2 n d m`` per layer: every head has its own keys, the MLP has two
    matrices, and nothing but the decoder's layers counts.
    """
    d, m = shape.width, shape.intermediate
    costs = [4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m for n in (*tokens, before)]
    return sum(costs[:-1]) / (shape.layers * costs[-1])


def layer_flops(shape: DecoderShape, tokens: int) -> int:
    """Operations of one decoder layer over ``tokens`` tokens (whole N x N attention)."""
    inner, keys = shape.heads * shape.head_dim, shape.key_heads * shape.head_dim
    projections = 2 * tokens * shape.width * (2 * inner + 2 * keys)
    attention = 2 * 2 * tokens**2 * inner
    mlp = 2 * tokens * shape.width * shape.intermediate * shape.mlp_matrices
    return projections + attention + mlp


def vision_flops(model: Any, tokens: int) -> int | None:
    """Operations of vision tower and projector for one prompt with ``tokens`` image tokens.

    Counts every matrix of both once per patch, and the tower's attention. Returns None where not
    every patch of pictures of one size is one image token, or the model's parts have unusual names.
    """
    base = getattr(model, "model", model)
    tower = getattr(base, "vision_tower", None) or getattr(base, "visual", None)
    projector = getattr(base, "multi_modal_projector", None)
    config = getattr(model.config, "vision_config", None)
    if tower is None or config is None or not isinstance(getattr(config, "image_size", None), int):
        return None
    patches = int(config.image_size // config.patch_size) ** 2
    sequence = patches + any("class_embedding" in n for n, _ in tower.named_parameters())
    per_picture = next((n for n in (patches, sequence) if tokens % n == 0), None)
    if per_picture is None:
        return None
    width, depth = int(config.hidden_size), int(config.num_hidden_layers)
    matrices: int = sum(
        p.numel() for n, p in tower.named_parameters() if p.ndim == 2 and "layers." in n
    )
    convolution: int = sum(p.numel() for p in tower.parameters() if p.ndim == 4)
    flops = 2 * (sequence * matrices + patches * convolution + 2 * depth * sequence**2 * width)
    if projector is not None:
        flops += 2 * patches * sum(p.numel() for p in projector.parameters() if p.ndim == 2)
    return tokens // per_picture * flops


def scoring_flops(
    policy: Policy | None, shape: DecoderShape, system: int, image: int, user: int
) -> int:
    """Operations that the ranking adds: products over the image tokens, not sorting.

    Oracles are not counted: they cost whole passes.
    """
    text = system + user
    if policy is None or not policy.ranks or policy.is_oracle:
        return 0
    counts = [image, *(n - text for n in tokens_per_layer(policy, shape, text, image))]
    inner = shape.heads * shape.head_dim
    return sum(
        policy.ranking.flops(RankingSize(counts[stage.layer], text, user, shape.width, inner))
        for stage in policy.stages
        if stage.keep
    )


@dataclass(frozen=True)
class PrefillCost:
    """What one prefill costs; None where a part cannot be counted from the config."""

    tokens_per_layer: tuple[int, ...]  # Tokens that each layer sees
    formula_share: float  # FastV's formula, as a share of the untouched decoder layers
    # Operations of the whole prefill (vision tower, projector, decoder layers, head for one
    # position, ranking), and of the untouched one
    exact: int | None
    exact_untouched: int | None
    # Decoder layers alone, exact, as a share of the untouched ones: what the formula estimates.
    # None where the layers differ (linear attention) or choose what to compute (experts)
    decoder_share: float | None

    @property
    def exact_share(self) -> float | None:
        """Share of the untouched prefill's operations."""
        if self.exact is None or self.exact_untouched is None:
            return None
        return self.exact / self.exact_untouched


def prefill_cost(
    model: Any, layers: Any, policy: Policy | None, system: int, image: int, user: int
) -> PrefillCost:
    """Count one prefill of a prompt of ``system``, ``image`` and ``user`` tokens."""
    shape = DecoderShape.of(model, layers)
    text = system + user
    tokens = tokens_per_layer(policy, shape, text, image)
    decoder = sum(layer_flops(shape, n) for n in tokens)
    untouched = shape.layers * layer_flops(shape, text + image)
    vision, alike = vision_flops(model, image), layers_are_alike(layers)
    exact = exact_untouched = None
    if alike and vision is not None:
        fixed = vision + 2 * shape.width * shape.vocabulary  # the head, at one position
        exact = fixed + decoder + scoring_flops(policy, shape, system, image, user)
        exact_untouched = fixed + untouched
    return PrefillCost(
        tokens_per_layer=tuple(tokens),
        formula_share=formula_share(shape, tokens, text + image),
        exact=exact,
        exact_untouched=exact_untouched,
        decoder_share=decoder / untouched if alike else None,
    )


def layers_are_alike(layers: Any) -> bool:
    """Whether every layer does the same with the same matrices for every token."""
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in layers]
    experts = any(len(shape) > 2 for shape in shapes[0].values())
    return not experts and all(shape == shapes[0] for shape in shapes)


def measured_flops(model: Any, inputs: Mapping[str, Any], truncation: Truncation | None) -> int:
    """Run one prefill under ``torch.utils.flop_counter`` and return what it counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    # The counter includes the fused attention kernels of GPUs, but not that of CPUs.
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    counter = FlopCounterMode(display=False, custom_mapping=fused)
    with nullcontext() if truncation is None else truncation(model), torch.no_grad(), counter:
        model(**inputs, use_cache=False, logits_to_keep=1)
    return int(counter.get_total_flops())
