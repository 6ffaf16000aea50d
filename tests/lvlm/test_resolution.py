"""Settings of image processors with which pictures take fewer tokens: all families, any picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from tests.support.families import FAMILIES, TinyFamily
from vlmflow import LVLM
from vlmflow.errors import InputError
from vlmflow.lvlm.resolution import with_image_settings

SIZES = ((30, 20), (17, 41), (48, 48), (64, 100))
CHOOSABLE = {
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v",
    "idefics3", "smolvlm", "internvl", "aya_vision", "cohere2_vision", "lfm2_vl", "mistral3",
}  # fmt: skip


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (*size[::-1], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def count(vlm: LVLM, size: tuple[int, int]) -> int:
    return vlm.prepare(picture(size), "What is it?").layout.image_positions.size


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_picture_takes_more_tokens_than_the_budget(family: TinyFamily):
    vlm = LVLM(*family.build("sdpa"))
    own = {size: count(vlm, size) for size in SIZES}
    chosen = []
    for tokens in (4, 9, 20, 30, 1000):
        settings = vlm.family.image_settings(vlm.processor, vlm.model.config, tokens)
        if settings is None:
            continue
        chosen.append(settings)
        smaller = with_image_settings(vlm, settings)
        counts = {size: count(smaller, size) for size in SIZES}
        assert all(0 < taken <= tokens for taken in counts.values())
        # Never larger than before, and as before where the budget is no bound.
        assert all(taken <= own[size] for size, taken in counts.items())
        if tokens == 1000:
            assert counts == own
    assert bool(chosen) == (family.model_type in CHOOSABLE or "Pixtral" in family.name)
    if chosen:
        assert count(with_image_settings(vlm, chosen[0]), (48, 48)) < own[48, 48]
        # The model and the processor that were given are what they were.
        assert {size: count(vlm, size) for size in SIZES} == own


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "smolvlm"])
def test_the_settings_do_the_same_in_a_saved_preprocessor_config(name: str, tmp_path):
    family = next(family for family in FAMILIES if family.model_type == name)
    vlm = LVLM(*family.build("sdpa"))
    settings = vlm.family.image_settings(vlm.processor, vlm.model.config, 8)
    vlm.processor.image_processor.save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    ours = with_image_settings(vlm, settings).processor.image_processor
    given = picture((48, 48))
    for key, tensor in saved([given], return_tensors="pt").items():
        assert np.array_equal(
            np.asarray(tensor), np.asarray(ours([given], return_tensors="pt")[key])
        )


def test_a_setting_that_does_not_exist_is_refused_by_name():
    family = next(family for family in FAMILIES if family.model_type == "qwen2_vl")
    vlm = LVLM(*family.build("sdpa"))
    with pytest.raises(InputError, match=r"has no setting 'max_tokens'; it has .*size"):
        with_image_settings(vlm, {"max_tokens": 4})
    # Those that only its constructor knows are settings, too.
    assert count(with_image_settings(vlm, {"max_pixels": 256}), (48, 48)) == 4
