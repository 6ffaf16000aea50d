"""SmolVLM's and Qwen2.5-VL's architectures on the pretrained decoder itself.

transformers runs them as they are trained. Most of what is true of Qwen2.5-VL's is tried on a tiny
decoder, in ``test_qwen.py``.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

import vlmflow
from tests.support.smollm2 import needs_smollm2
from training import smollm2_models
from training.smolvlm_tower import start_from_clip
from vlmflow.bundled import smolqwen, smolvlm
from vlmflow.bundled.assembly import PARTS, add_tuned
from vlmflow.bundled.shelf import BUNDLED
from vlmflow.bundled.smollm2 import load_decoder
from vlmflow.bundled.smolqwen import build_qwen
from vlmflow.bundled.smolvlm import IMAGE_TOKENS, build_smolvlm
from vlmflow.scenes import samples


@pytest.fixture(scope="module")
def tower():
    donor = AutoModelForImageTextToText.from_pretrained(
        BUNDLED / "scenes-llava", dtype=torch.float32
    )
    return donor.model.vision_tower, start_from_clip(donor.model.vision_tower)


def test_the_tower_starts_with_the_weights_it_has_a_place_for(tower):
    clip, own = tower
    theirs = clip.state_dict()
    for name, value in own.state_dict().items():
        if name == "embeddings.position_embedding.weight":
            assert torch.equal(value, theirs[name][1:])  # without the class token's
        elif name == "embeddings.patch_embedding.bias":
            assert name not in theirs
        else:
            assert torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def base():
    return load_decoder()  # takes long


@needs_smollm2
def test_it_runs_as_it_is_trained(tower, base, tmp_path, monkeypatch):
    save_file(tower[1].state_dict(), tmp_path / "tower.safetensors")
    monkeypatch.setattr(smolvlm, "load_decoder", lambda: copy.deepcopy(base))
    model, processor = build_smolvlm()
    unfinished = smollm2_models.scenes_smolvlm(tmp_path)
    generator = torch.Generator().manual_seed(0)
    layer = model.model.text_model.layers[3].mlp.up_proj.weight
    down = torch.randn(4, layer.shape[1], generator=generator) * 0.01
    up = torch.randn(layer.shape[0], 4, generator=generator)
    tuned = {
        **unfinished.fixed,
        **{f"projector.{k}": v.detach() for k, v in unfinished.projector.named_parameters()},
        "adapters.3.mlp.up_proj.down": down,
        "adapters.3.mlp.up_proj.up": up,
    }
    before = layer.clone()
    add_tuned(model, tuned, PARTS["scenes-smolvlm"])
    torch.testing.assert_close(layer, before + up @ down)

    vlm = vlmflow.LVLM(model, processor, name="smolvlm")
    (sample,) = samples("scenes-existence", "test", 1)
    prompt = vlm.prepare(sample.picture, sample.question)
    positions = prompt.layout.image_positions
    assert len(positions) == IMAGE_TOKENS == 36
    # The text of a training example, and the features that are put into it, are the model's own.
    text = processor.tokenizer.decode(prompt.inputs["input_ids"][0])
    assert unfinished.pictures.text in text
    embedded = []
    model.model.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: embedded.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**prompt.inputs)
        features = unfinished.projector(unfinished.features(prompt.inputs))
    torch.testing.assert_close(embedded[0][0, positions], features, rtol=1e-4, atol=1e-4)
    # Its tokens are squares that cover the whole picture.
    flow = vlm.explain(sample.picture, sample.question, max_new_tokens=1)
    assert np.isfinite(flow.pixel_map("flow_map")).all()


@needs_smollm2
def test_text_is_the_same_to_qwens_architecture(base, monkeypatch):
    monkeypatch.setattr(smolqwen, "load_decoder", lambda: copy.deepcopy(base))
    model, processor = build_qwen()
    tokenizer = processor.tokenizer
    text = "The capital of France is Paris, and Italy's is"
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        wanted, own = base[0](**ids).logits, model(**ids).logits
    assert own.shape[-1] == wanted.shape[-1] + 4  # picture and video, and the marks around them
    torch.testing.assert_close(own[..., :-4], wanted, rtol=1e-5, atol=1e-5)
    assert ids["input_ids"].tolist() == [base[1].encode(text)]

    (sample,) = samples("scenes-existence", "test", 1)
    prompt = vlmflow.LVLM(model, processor).prepare(sample.picture, sample.question)
    tokens = "<|image_pad|>" * len(prompt.layout.image_positions)
    assert tokenizer.decode(prompt.inputs["input_ids"][0]).endswith(
        f"<|im_start|>user\n<|vision_start|>{tokens}<|vision_end|>\n{sample.question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
