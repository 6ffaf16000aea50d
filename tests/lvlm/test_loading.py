from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import vlmflow
from tests.support.tiny import tiny_llava
from vlmflow.bundled import shelf
from vlmflow.errors import InputError, ModelError, Note
from vlmflow.lvlm import loading

PICTURE = Image.new("RGB", (80, 60), "orange")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny-llava"
    model, processor = tiny_llava(3, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def test_a_directory_opens_as_it_was_saved_without_network(saved, no_network):
    vlm = vlmflow.load(saved)
    model, processor = tiny_llava(3, dtype=torch.bfloat16)
    expected = vlmflow.LVLM(model, processor)
    assert vlm.dtype == torch.bfloat16
    assert not vlm.model.training
    given, wanted = (lvlm.prepare(PICTURE, "What is it?", "red") for lvlm in (vlm, expected))
    assert given.text == wanted.text
    assert torch.equal(given.inputs["input_ids"], wanted.inputs["input_ids"])
    torch.testing.assert_close(
        vlm.model(**given.inputs).logits.cpu(), model(**wanted.inputs).logits, rtol=0.02, atol=0.02
    )


def test_options_reach_the_model(saved):
    vlm = vlmflow.load(str(saved), device="cpu", dtype="float32", attn_implementation="eager")
    assert vlm.dtype == torch.float32
    assert vlm.device == torch.device("cpu")
    assert vlm.config_summary()["attention"] == "eager"


def test_a_bundled_name_opens_the_directory_of_that_name(saved, monkeypatch, no_network):
    monkeypatch.setattr(shelf, "BUNDLED", saved.parent)
    assert shelf.bundled_models() == ("tiny-llava",)
    assert vlmflow.load("tiny-llava").name == "tiny-llava"


def test_what_is_not_a_model_is_said_in_one_sentence(saved, tmp_path, monkeypatch, no_network):
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file.bin"
    file.write_bytes(b"x")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((saved / "config.json").read_text())
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    shapes = tmp_path / "shapes"
    shutil.copytree(saved, shapes)
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["hidden_size"] *= 2
    (shapes / "config.json").write_text(json.dumps(config))
    deeper = tmp_path / "deeper"
    shutil.copytree(saved, deeper)
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (deeper / "config.json").write_text(json.dumps(config))
    text = tmp_path / "text"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=10,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    ).save_pretrained(text)
    for name, message in (
        ("scenes-lava", "no model 'scenes-lava'"),
        (tmp_path / "nowhere", "no model '.*nowhere'"),
        ("", "no model ''"),
        (empty, "no config.json"),
        (file, "is a file"),
        (broken, "cannot open"),
        (bare, "cannot open"),
        (unknown, "cannot open .*no-such-type"),
        (shapes, "its weights have other shapes than its config.json says"),
        (deeper, r"lacks weights of its language model, \d+ in all .*do not belong together"),
        (text, "of type 'llama'.*image-text-to-text"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            vlmflow.load(name)
        assert "\n" not in str(caught.value)


def test_weights_that_are_missing_elsewhere_are_said_to_be(saved, tmp_path):
    """A deeper vision tower than the file holds: random layers, and a sentence."""
    deeper = tmp_path / "deeper"
    shutil.copytree(saved, deeper)
    config = json.loads((saved / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (deeper / "config.json").write_text(json.dumps(config))
    with pytest.warns(Note, match=r"lacks weights outside its language model.*vision"):
        vlmflow.load(deeper)


def test_a_hub_model_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"nothing-at-all .*the hub was asked") as caught:
        vlmflow.load("nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


def test_options_that_cannot_be_used_are_refused(saved, monkeypatch):
    with pytest.raises(InputError, match="exclude each other"):
        vlmflow.load(saved, device="cpu", device_map="auto")
    with pytest.raises(InputError, match="device='gpu'"):
        vlmflow.load(saved, device="gpu")
    for device in ("meta", "cpu:5", "hpu", "cpu:x", ""):
        with pytest.raises(InputError, match=f"device='{device}'"):
            vlmflow.load(saved, device=device)
    for device_map in ("meta", {"": "meta"}):
        with pytest.raises(InputError, match=r"device_map=.*'meta', which holds no values"):
            vlmflow.load(saved, device_map=device_map)
    with pytest.raises(InputError, match="dtype='int8'"):
        vlmflow.load(saved, dtype="int8")
    with pytest.raises(InputError, match="revision='main'"):
        vlmflow.load(saved, revision="main")
    with pytest.raises(ModelError, match=r"cannot open .*attn"):
        vlmflow.load(saved, attn_implementation="no_such_attention")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install accelerate"):
        vlmflow.load(saved, device_map="auto")


def test_code_of_a_models_author_runs_only_when_trusted(saved, tmp_path):
    directory = tmp_path / "own-code"
    directory.mkdir()
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "own_vlm"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text("raise SystemExit('the code of a stranger ran')")
    with pytest.raises(ModelError, match="cannot open"):
        vlmflow.load(directory)
