"""One tiny model of every family, with random weights and its real processor, built in code.

The list `FAMILIES` drives every test that must hold for all of them: a new family is one entry
here and one builder in `tiny_square.py`, `tiny_shaped.py` or `tiny_tiled.py`.
"""

from __future__ import annotations

from functools import partial

from tests.support.tiny_family import LAYERS, PATCH, TinyFamily, picture
from tests.support.tiny_shaped import (
    glm4v,
    mistral3,
    pixtral,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
)
from tests.support.tiny_square import blip2, deepseek_vl, gemma3, instructblip, llava, paligemma
from tests.support.tiny_tiled import (
    aya_vision,
    cohere2_vision,
    idefics3,
    internvl,
    lfm2_vl,
    llava_next,
    llava_onevision,
    perception_lm,
    smolvlm,
)

__all__ = ["FAMILIES", "LAYERS", "PATCH", "SIZES", "WITHOUT_EXPERTS", "TinyFamily", "picture"]

SIZES = ((30, 20), (17, 41))
"""Width and height of the pictures that a test of a batch looks at."""

FAMILIES = (
    TinyFamily("llava", llava),
    TinyFamily("llava", pixtral, variant="Pixtral's tower"),
    TinyFamily("llava_next", llava_next),
    TinyFamily("llava_onevision", llava_onevision),
    # Interpolated features draw on the patches around; a patch is PATCH pixels.
    TinyFamily(
        "llava_onevision", partial(llava_onevision, most=2), slack=PATCH, variant="shrunk tiles"
    ),
    TinyFamily("qwen2_vl", qwen2_vl),
    TinyFamily("qwen2_5_vl", qwen2_5_vl),
    TinyFamily("qwen3_vl", qwen3_vl),
    TinyFamily("qwen3_vl_moe", partial(qwen3_vl, experts=True)),
    TinyFamily("qwen3_5", qwen3_5, first_attention=1),
    TinyFamily("qwen3_5_moe", partial(qwen3_5, experts=True), first_attention=1),
    TinyFamily("glm4v", glm4v),
    # Three resizes one after the other: each may be a pixel off.
    TinyFamily("idefics3", idefics3, slack=2),
    TinyFamily("smolvlm", smolvlm, slack=2),
    TinyFamily("internvl", internvl),
    TinyFamily("aya_vision", aya_vision, norm="input_layernorm"),
    TinyFamily("cohere2_vision", cohere2_vision, norm="input_layernorm"),
    TinyFamily("deepseek_vl", deepseek_vl),
    TinyFamily("lfm2_vl", lfm2_vl, first_attention=1, norm="ffn_norm"),
    TinyFamily("perception_lm", perception_lm, one_shape=True),
    TinyFamily("gemma3", gemma3),
    TinyFamily("gemma3", partial(gemma3, crops=True), variant="pan and scan"),
    TinyFamily("paligemma", paligemma),
    TinyFamily("mistral3", mistral3, single=False),
    TinyFamily("blip-2", blip2, queries=True, norm="final_layer_norm"),
    TinyFamily("instructblip", instructblip, queries=True),
)

WITHOUT_EXPERTS = tuple(family for family in FAMILIES if not family.model_type.endswith("_moe"))
"""Those that differ before the decoder: mixtures of experts see as their dense siblings do."""
