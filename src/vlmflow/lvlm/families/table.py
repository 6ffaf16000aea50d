"""What works with which model type: the table of ``vlmflow models`` and of the docs.

Tests hold every row against a model of its type, built from a configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Supported:
    """One model type."""

    model_type: str  # ``config.model_type``
    example: str  # A model of this type on the Hugging Face hub
    grids: str  # How a picture becomes image tokens
    note: str = ""  # Anything else worth knowing; may be empty
    lacks: str = ""  # What does not work and why; empty: everything does
    # Whether rankings by place (``uniform``, ``top_left``) know rows and columns of image tokens
    by_place: bool = False
    videos: bool = False  # Whether it takes videos


_TILES = "tiles, and the whole picture small"
_ONE = "one grid"
_SHAPED = "one grid in the picture's own shape"
_EXPERTS = "mixture of experts"
_DEEPSTACK = "features are added again after the first layers (DeepStack); truncation follows"
_QUERIES = "the map is spread over patches as the Q-Former's cross-attention is; one picture"
_NO_ORACLE = "oracle rankings while generating: its generate runs the language model alone"
_LINEAR = "layers without attention report none; rankings by attention need a layer that has it"

SUPPORTED = (
    Supported("llava", "llava-hf/llava-1.5-7b-hf", _ONE,
              note="with Pixtral's tower, too", by_place=True),
    Supported("vipllava", "llava-hf/vip-llava-7b-hf", _ONE, by_place=True),
    Supported("llava_next", "llava-hf/llava-v1.6-mistral-7b-hf", _TILES),
    Supported("llava_onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", _TILES,
              note="of several pictures each is seen once, small; one length of videos in a batch",
              videos=True),
    Supported("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", _SHAPED, by_place=True, videos=True),
    Supported("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", _SHAPED, by_place=True, videos=True),
    Supported("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", _SHAPED,
              note=_DEEPSTACK, by_place=True, videos=True),
    Supported("qwen3_vl_moe", "Qwen/Qwen3-VL-30B-A3B-Instruct", _SHAPED,
              note=f"{_EXPERTS}; {_DEEPSTACK}", by_place=True, videos=True),
    Supported("qwen3_5", "Qwen/Qwen3.5-27B", _SHAPED, note=_LINEAR, by_place=True, videos=True),
    Supported("qwen3_5_moe", "Qwen/Qwen3.5-35B-A3B", _SHAPED,
              note=f"{_EXPERTS}; {_LINEAR}", by_place=True, videos=True),
    Supported("glm4v", "zai-org/GLM-4.1V-9B-Thinking", _SHAPED,
              note="pictures or videos in a prompt or batch, not both", by_place=True, videos=True),
    Supported("idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", _TILES),
    Supported("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", _TILES),
    Supported("internvl", "OpenGVLab/InternVL3-8B-hf", _TILES),
    Supported("aya_vision", "CohereLabs/aya-vision-8b", _TILES),
    Supported("cohere2_vision", "CohereLabs/command-a-vision-07-2025", _TILES),
    Supported("gemma3", "google/gemma-3-4b-it", _ONE, note="with pan and scan, a second one"),
    Supported("paligemma", "google/paligemma2-3b-mix-448", _ONE, by_place=True),
    Supported("mistral3", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", _SHAPED,
              note="row breaks have no place", by_place=True),
    Supported("perception_lm", "facebook/Perception-LM-1B", _TILES,
              note="pictures of one batch need the same number of tiles"),
    Supported("deepseek_vl", "deepseek-community/deepseek-vl-1.3b-chat", _ONE),
    Supported("lfm2_vl", "LiquidAI/LFM2-VL-1.6B", _TILES, note=_LINEAR),
    Supported("blip-2", "Salesforce/blip2-opt-2.7b", "32 query tokens",
              note=_QUERIES, lacks=_NO_ORACLE),
    Supported("instructblip", "Salesforce/instructblip-vicuna-7b", "32 query tokens",
              note=_QUERIES, lacks=_NO_ORACLE),
)  # fmt: skip
"""Every model type that a family claims."""

CROSS_ATTENTION = (
    "mllama has no image tokens in its decoder's sequence but looks at pictures through "
    "cross-attention layers: nothing of this works with it, and the error says so"
)

UNKNOWN = (
    "any other type with an image_token_id: curves, saliency, truncation and removal curves work, "
    "and the map over pixels is missing; docs/adding-a-family.md says how to add a family"
)


def rows() -> Iterator[tuple[str, ...]]:
    """Give the table: type, example, image tokens, videos, by place, what is lacking, note."""
    yield "model type", "for example", "image tokens", "video", "by place", "does not work", "note"
    for row in SUPPORTED:
        video, by_place = ("yes" if yes else "no" for yes in (row.videos, row.by_place))
        yield row.model_type, row.example, row.grids, video, by_place, row.lacks, row.note


def markdown() -> str:
    """Return the table as ``docs/families.md`` shows it."""
    head, *body = rows()
    lines = [head, ("---",) * len(head), *((f"`{r[0]}`", f"`{r[1]}`", *r[2:]) for r in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
