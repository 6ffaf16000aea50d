"""Qwen2.5-VL's architecture on the pretrained decoder: built, trained and put together."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

import vlmflow
from tests.support.number_format import quick_training
from tests.support.tiny import tiny_tokenizer
from training import pretrained_decoder, qwen_tower, smollm2_models, smolvlm_tower, towers
from training.packing import Examples, collate
from training.pictures import ShapedPictures
from training.pretrained_decoder import Recipe
from training.qwen_tower import bare, patch_labels, start_from_clip
from training.towers import TowerRecipe
from training.turns import WORDS_FIRST
from vlmflow.bundled import assembly, shelf, smolqwen
from vlmflow.bundled.assembly import PARTS, add_tuned
from vlmflow.bundled.smolqwen import MAX_TOKENS, NAMED, build_qwen, image_processor
from vlmflow.lvlm.resolution import with_image_settings
from vlmflow.scenes import samples
from vlmflow.scenes.generator import COLOURS, KINDS, draw_scene

NAME = "scenes-qwen"
SHORT = TowerRecipe(steps=2, batch=2, rate=1e-3, warm_up=1)
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def tiny_base(monkeypatch):
    """A random decoder of two layers in SmolLM2's place; its heads are as wide as there."""
    tokenizer = tiny_tokenizer(extra=CHAT)
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
    ).eval()
    monkeypatch.setattr(smolqwen, "load_decoder", lambda: (decoder, tokenizer))
    return decoder


@pytest.fixture
def out(tiny_base, tmp_path: Path, monkeypatch) -> Path:
    """A directory to train in, with the file of a random tower."""
    monkeypatch.setattr(smollm2_models, "SAMPLED", 4)
    torch.manual_seed(1)
    tower = build_qwen()[0].model.visual
    bare(tower)
    save_file(tower.state_dict(), tmp_path / towers.TOWER)
    return tmp_path


def test_text_is_what_it_is_to_the_decoder_alone(tiny_base):
    model, processor = build_qwen()
    ids = processor.tokenizer("Is there a blue square in it? yes", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted, own = tiny_base(ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(own[..., : wanted.shape[-1]], wanted, rtol=1e-5, atol=1e-5)


def test_every_resolution_is_drawn_and_none_has_more_tokens_than_the_processor_gives():
    pictures = ShapedPictures(image_processor())
    rng = np.random.default_rng(0)
    for size in ((180, 180), (280, 420)):
        shown = [pictures.show(Image.new("RGB", size), rng) for _ in range(25)]
        counts = [picture.text.count(NAMED["image_token"]) for picture in shown]
        assert max(counts) <= MAX_TOKENS
        assert min(counts) < 35
        assert max(counts) > 150


def test_examples_are_to_the_model_what_each_turn_is_alone(out):
    """Against transformers' own model, with its own places and its own merger, turn by turn."""
    unfinished = smollm2_models.scenes_qwen(out)
    model, processor = build_qwen()
    projector = {f"projector.{k}": v for k, v in unfinished.projector.state_dict().items()}
    add_tuned(model, {**unfinished.fixed, **projector}, PARTS[NAME])
    language = unfinished.language_model
    for conversations in (0.0, 1.0):
        data = Examples(processor, unfinished.pictures, 700, 2, 0, 1, conversations, 3, WORDS_FIRST)
        batch = collate([data[0], data[1]])
        grids = batch["picture"]["image_grid_thw"]
        assert not torch.equal(grids[0], grids[1])
        with torch.no_grad():
            states = pretrained_decoder._states(unfinished, batch)
            packed = states @ language.embed_tokens.weight.T
        for row, grid in enumerate(grids):
            example, turns = data[row], batch["turns"][row]
            shared = example["blocks"] == 0
            picture = {**example["picture"], "image_grid_thw": grid[None]}
            assert turns.max() >= 1
            for turn in range(int(turns.max()) + 1):
                labelled = turns == turn
                seen = shared if conversations else shared | (example["blocks"] == turn + 1)
                ids = example["input_ids"][seen][None]
                types = (ids == model.config.image_token_id).int()
                positions, _ = model.model.get_rope_index(ids, types, grid[None])
                assert torch.equal(example["position_ids"][:, seen], positions[:, 0])
                with torch.no_grad():
                    alone = model(input_ids=ids, mm_token_type_ids=types, **picture).logits[0]
                torch.testing.assert_close(
                    packed[row, labelled], alone[labelled[seen]], rtol=1e-4, atol=1e-4
                )


@pytest.fixture(scope="module")
def clip():
    donor = AutoModelForImageTextToText.from_pretrained(
        shelf.BUNDLED / "scenes-llava", dtype=torch.float32
    )
    return donor.model.vision_tower


@torch.no_grad()
def test_the_tower_starts_with_the_layers_of_another(clip):
    tower = start_from_clip(clip)
    states = torch.randn(30, 192, generator=torch.Generator().manual_seed(0))
    states -= states.mean(-1, keepdim=True)
    nowhere = torch.ones(30, 64), torch.zeros(30, 64)
    ends = torch.tensor([0, 30])
    for block, layer in zip(tower.blocks, clip.encoder.layers, strict=True):
        wanted = layer(states[None], None)[0]
        wanted = wanted - wanted.mean(-1, keepdim=True)
        states = block(states, cu_seqlens=ends, position_embeddings=nowhere)
        torch.testing.assert_close(states, wanted.reshape(30, 192), rtol=1e-3, atol=1e-3)
    (scene,) = samples("scenes-existence", "test", 1)
    picture = scene.picture.resize((168, 168))
    inputs = image_processor()(picture, return_tensors="pt")
    pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1) / 127.5 - 1).float()
    wanted = clip.get_submodule("embeddings").patch_embedding(pixels[None])[0]
    wanted = wanted.reshape(192, 6, 2, 6, 2).permute(1, 3, 2, 4, 0).flatten(0, 3)
    wanted = wanted - wanted.mean(-1, keepdim=True)
    torch.testing.assert_close(
        tower.patch_embed(inputs["pixel_values"]), wanted, rtol=1e-3, atol=1e-3
    )


def test_labels_stand_where_the_image_processor_puts_patches():
    rows, columns = 8, 12
    for index in range(12):
        scene = draw_scene((0, 1, index, 0))
        labels = patch_labels(scene, rows, columns)
        for thing in (thing for thing in scene.objects if thing.size == "big"):
            row, column = (
                int(place / extent * count)
                for place, extent, count in zip(
                    thing.centre[::-1], (scene.height, scene.width), (rows, columns), strict=True
                )
            )
            pixels = np.zeros((rows * 14, columns * 14, 3), dtype=np.uint8)
            pixels[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = 255
            inputs = image_processor()(
                Image.fromarray(pixels), return_tensors="pt", do_resize=False
            )
            patch = int(inputs["pixel_values"].mean(1).argmax())
            assert labels[0, patch] == KINDS.index(thing.kind) + 1
            assert labels[1, patch] == list(COLOURS).index(thing.colour) + 1
        assert (labels[0] == 0).any()


def test_a_killed_tower_continues_where_it_stopped(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(towers, "CHECKPOINT_EVERY", 1)
    quick_training(monkeypatch)
    loss = qwen_tower.train(tmp_path / "whole", SHORT)
    real = towers.save_checkpoint

    def killed(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(towers, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        qwen_tower.train(tmp_path / "resumed", SHORT)
    monkeypatch.setattr(towers, "save_checkpoint", real)
    qwen_tower.train(tmp_path / "resumed", SHORT)
    whole, resumed = (load_file(tmp_path / name / towers.TOWER) for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == [towers.TOWER]
    chance = sum(np.log(count) for count in qwen_tower.LABELS.values())
    assert loss == pytest.approx(chance, rel=0.1)  # heads start at 0


def test_the_other_tower_is_trained_as_well(tmp_path: Path, clip):
    error = smolvlm_tower.train(tmp_path, SHORT)
    assert 0.5 < error < 1.2  # 1: as bad as the mean
    weights = load_file(tmp_path / towers.TOWER)
    start = smolvlm_tower.start_from_clip(clip).state_dict()
    assert weights.keys() == start.keys()
    name = "embeddings.patch_embedding.weight"
    assert not torch.equal(weights[name], start[name].bfloat16())


def test_what_is_trained_is_put_together(out: Path, tmp_path_factory, monkeypatch):
    recipe = Recipe(rank=2, length=450, batch=2, steps=2, decay=1, warm_up=1)
    monkeypatch.setitem(pretrained_decoder.RECIPES, NAME, recipe)
    monkeypatch.setattr(pretrained_decoder, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)  # needs a C++ compiler
    pretrained_decoder.train(NAME, out)
    tuned = load_file(out / shelf.TUNED)
    assert all(tuned[key].any() for key in tuned if key.endswith(".up"))

    models = tmp_path_factory.mktemp("models")
    (models / NAME).mkdir()
    (out / shelf.TUNED).rename(models / NAME / shelf.TUNED)
    monkeypatch.setattr(shelf, "BUNDLED", models)
    monkeypatch.setattr(assembly, "find_weights", lambda: Path("base.gguf"))
    monkeypatch.setenv("VLMFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
    with pytest.warns(vlmflow.errors.Note, match="putting scenes-qwen together"):
        vlm = vlmflow.load(NAME)
    # A plain directory, with the tower, the merger and the adapters of the file.
    directory = shelf.bundled_directory(NAME)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    processor = AutoProcessor.from_pretrained(directory)
    parts = model.model.visual.state_dict()
    for key, value in tuned.items():
        prefix, _, name = key.partition(".")
        if prefix != "adapters":
            assert torch.equal(parts[f"merger.{name}" if prefix == "projector" else name], value)
    base, _ = smolqwen.load_decoder()
    for path in ("self_attn.v_proj", "mlp.down_proj"):
        product = tuned[f"adapters.1.{path}.up"].float() @ tuned[f"adapters.1.{path}.down"].float()
        wanted = base.model.layers[1].get_submodule(path).weight + product
        own = model.model.language_model.layers[1].get_submodule(path).weight
        assert torch.equal(own, wanted.bfloat16())

    (sample,) = samples("scenes-existence", "test", 1)
    prompt = vlm.prepare(sample.picture, sample.question)
    (grid,) = prompt.layout.grids
    count = grid.positions.size
    assert 41 <= count <= 150
    assert processor.tokenizer.image_token == NAMED["image_token"]
    # Its tokens cover the picture row by row.
    boxes = grid.boxes.reshape(-1, 4)
    assert boxes.min() == pytest.approx(0, abs=1)
    width, height = sample.picture.size
    assert boxes[-1, 2:] == pytest.approx([width, height], abs=1)
    assert all(later[1] >= earlier[1] for earlier, later in pairwise(boxes.tolist()))

    flow = vlm.explain(sample.picture, sample.question, max_new_tokens=2)
    assert np.isfinite(flow.pixel_map("flow_map")).all()
    truncation = vlmflow.Truncation(layer=1, keep=0.25)
    answer = vlm.generate(sample.picture, sample.question, max_new_tokens=2, truncation=truncation)
    assert isinstance(answer, str)
    settings = vlm.family.image_settings(vlm.processor, vlm.model.config, 30)
    smaller = with_image_settings(vlm, settings)
    fewer = smaller.prepare(sample.picture, sample.question).layout.image_positions.size
    assert 0 < fewer <= 30 < count
    result = vlmflow.budget(
        vlm,
        "scenes-existence",
        (30,),
        settings=vlmflow.BudgetSettings(risk=0.9, calibration=1, samples=1, layer=1, timed=1),
    )
    assert result.to_json()
