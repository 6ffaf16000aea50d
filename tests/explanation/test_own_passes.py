"""TAM and region removal, against loops over whole logits and over masked, eager passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import vlmflow
from tests.support.families import FAMILIES, picture
from tests.support.slow_signals import answer_logits, search, tam
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError, ModelError
from vlmflow.flow.measure import measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.regions import regions_of
from vlmflow.flow.signals.region_removal import RegionRemoval
from vlmflow.flow.signals.signal import Noise, Passes
from vlmflow.flow.signals.tam import Tam
from vlmflow.removal import chosen
from vlmflow.removal.chosen import logits_without

QUESTION, ANSWER = "What colour is it?", "a red"
# float32, both sides: 1e-4 of the largest value is some hundred roundings (6e-8 each).
FLOAT32 = 1e-4
CHOSEN = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl_moe", "gemma3", "lfm2_vl", "qwen3_5")
"""Families: tiles with row breaks, positions on three axes, late image features, sliding windows
beside blocks that see both ways, layers with a state."""


def family_of(name):
    return next(family for family in FAMILIES if family.model_type == name)


def pictures_for(family):
    return [picture(1, (30, 20)), picture(2, (17, 41))][: 2 - family.queries]


@pytest.mark.parametrize("name", CHOSEN)
def test_tam_agrees_with_a_loop(name):
    """The interference is really taken away: what is left differs from the bare activation."""
    family = family_of(name)
    vlm, eager = family.lvlm(), family.lvlm("eager")
    # Words of the answer are in the question: they must not explain themselves away.
    shown, question = pictures_for(family), "Is it a red one, or is it a blue one?"
    flow = vlm.explain(shown, question, ANSWER, signals=["tam", "tam(window=1)"])
    prompt = eager.prepare(shown, question, ANSWER)
    assert set(prompt.answer_ids) & set(
        eager.prepare(shown, question).inputs["input_ids"][0].tolist()
    )
    for window, values in zip((3, 1), flow.maps.values(), strict=True):
        expected = tam(eager, prompt, window)
        assert expected.max() > 0
        worst = np.abs(values[0] - expected).max() / expected.max()
        assert worst <= FLOAT32, f"{name}, window {window}: off by {worst:.1e}"
    bare, filtered_map = flow.maps["tam(window=1)"], flow.maps["tam"]
    assert np.abs(bare - filtered_map).max() > 0.01 * bare.max()


def test_tam_takes_one_forward_pass_alone(monkeypatch):
    vlm = vlmflow.LVLM(*tiny_llava(kv_heads=2))
    shown = picture(3, (60, 40))
    assert Tam().passes(tokens=7) == Tam().passes()
    assert (Tam().passes().forward, Tam().passes().backward) == (1, 0)
    monkeypatch.setattr(torch.Tensor, "backward", None)
    seen = []
    vlm.explain(
        shown, QUESTION, ANSWER, signals=["tam"], gradients=False,
        progress=lambda *pair: seen.append(pair),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_tam_needs_neighbours():
    (family,) = [family for family in FAMILIES if family.model_type == "blip-2"]
    vlm = family.lvlm()
    with pytest.raises(InputError, match=r"no places of their own .* tam\(window=1\) leaves the"):
        vlm.explain(picture(1, (30, 20)), QUESTION, ANSWER, signals=["tam"])
    flow = vlm.explain(picture(1, (30, 20)), QUESTION, ANSWER, signals=["tam(window=1)"])
    expected = tam(family.lvlm("eager"), vlm.prepare(picture(1, (30, 20)), QUESTION, ANSWER), 1)
    assert np.abs(flow.maps["tam"][0] - expected).max() <= FLOAT32 * expected.max()
    for window in (0, 2):
        with pytest.raises(InputError, match=f"window={window}"):
            Tam(window=window)


@pytest.mark.filterwarnings("error")
def test_a_picture_of_one_token_is_one_region_without_neighbours():
    """All that the picture does is its one token's: shown alone, and left out."""
    vlm = vlmflow.LVLM(*tiny_llava(kv_heads=2, image_size=14))
    signals = ["tam", "tam(window=1)", "region_removal"]
    flow = vlm.explain(picture(1, (30, 20)), QUESTION, "red", signals=signals)
    filtered_map, bare, removal = (flow.maps[name][0, :, 0] for name in flow.signals)
    np.testing.assert_array_equal(filtered_map, bare)
    effect = flow.picture_effect
    logs = np.log(effect.with_picture) - np.log(effect.without_picture)
    np.testing.assert_allclose(removal[1:], 2 * logs, rtol=1e-3, atol=1e-5)
    assert np.abs(removal).max() > 1e-4


@pytest.mark.parametrize("name", [*CHOSEN, "blip-2"])
def test_removed_tokens_are_as_good_as_hidden(name):
    """Sets of different sizes in one batch: none, some, all."""
    family = family_of(name)
    vlm, eager = family.lvlm(), family.lvlm("eager")
    prompt = vlm.prepare(pictures_for(family), QUESTION, ANSWER)
    tokens = len(prompt.layout.image_positions)
    draw = np.random.default_rng(0).random((4, tokens))
    removed = np.stack([draw[0] < 0, draw[1] < 0.3, draw[2] < 0.8, draw[3] < 2])
    logits = logits_without(vlm, prompt, torch.from_numpy(removed))
    assert logits.shape[:2] == (5, len(prompt.answer_ids))
    for number, gone in enumerate([removed[0], *removed]):
        expected = answer_logits(eager, prompt, gone)
        worst = (logits[number] - expected).abs().max() / expected.abs().max()
        assert worst <= FLOAT32, f"{name}, set {number}: off by {worst:.1e}"


def test_removal_is_of_the_untouched_model(tiny):
    vlm, _, pictures = tiny
    prompt = vlm.prepare(pictures, QUESTION, ANSWER)
    removed = torch.zeros(1, len(prompt.layout.image_positions), dtype=torch.bool)
    with (
        vlmflow.Truncation(layer=1, keep=0)(vlm.model),
        pytest.raises(InputError, match="removal of chosen image tokens measures the untouched"),
    ):
        logits_without(vlm, prompt, removed)


SEARCHES = {
    "first round alone": RegionRemoval(regions=4, forwards=9),
    "one step": RegionRemoval(regions=4, forwards=13, width=2),
    "to the end": RegionRemoval(regions=6, forwards=64, width=2),
    "one at a time": RegionRemoval(regions=5, forwards=16, width=1),
}


@pytest.fixture(scope="module")
def tiny():
    build = {"kv_heads": 2, "layers": 3}
    return (
        vlmflow.LVLM(*tiny_llava(**build)),
        vlmflow.LVLM(*tiny_llava(**build, attn_implementation="eager")),
        [picture(1, (60, 40)), picture(2, (40, 60))],
    )


@pytest.mark.parametrize("signal", SEARCHES.values(), ids=SEARCHES)
def test_the_search_agrees_with_masked_passes(tiny, signal):
    vlm, eager, pictures = tiny
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=[signal])
    prompt = eager.prepare(pictures, QUESTION, ANSWER)
    expected, order, passes = search(eager, prompt, signal)
    assert passes <= signal.forwards
    values = flow.maps["region_removal"][0]
    np.testing.assert_allclose(values, expected, atol=FLOAT32 * np.abs(expected).max())
    # The whole answer's map ranks the regions strictly in the order of the search.
    regions = regions_of(prompt.layout, signal.regions)
    of_region = [values[0, regions == region] for region in order]
    assert all(np.ptp(own) == 0 for own in of_region)
    assert (np.diff([own[0] for own in of_region]) < 0).all()


def test_a_search_over_tiles_agrees(tiny):
    del tiny
    family = family_of("llava_next")
    signal = RegionRemoval(regions=4, forwards=20)
    flow = family.lvlm().explain(picture(1, (48, 30)), QUESTION, ANSWER, signals=[signal])
    eager = family.lvlm("eager")
    prompt = eager.prepare(picture(1, (48, 30)), QUESTION, ANSWER)
    expected, *_ = search(eager, prompt, signal)
    values = flow.maps["region_removal"][0]
    np.testing.assert_allclose(values, expected, atol=FLOAT32 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{"per_token": False}, {"low_memory": True}], ids=str)
def test_every_way_of_measuring_gives_the_same(tiny, options):
    vlm, _, pictures = tiny
    signals = ["region_removal(regions=4,forwards=16)", "tam"]
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=signals)
    again = vlm.explain(pictures, QUESTION, ANSWER, signals=signals, **options)
    for name in flow.signals:
        ways = again.maps[name].shape[1]
        assert ways == 1 if options.get("per_token") is False else 1 + len(flow.answer_tokens)
        scale = np.abs(flow.maps[name]).max()
        np.testing.assert_allclose(
            again.maps[name], flow.maps[name][:, :ways], atol=FLOAT32 * scale
        )


def test_passes_are_those_that_are_run(tiny, monkeypatch):
    """Short ones never more than allowed; the untouched prompt beside each batch is counted."""
    vlm, _, pictures = tiny
    assert RegionRemoval().passes().backward == 0
    assert RegionRemoval().passes().forward <= 64 + 16
    short = batches = 0
    run = chosen.logits_without

    def counted(own_vlm, prompt, removed):
        nonlocal short, batches
        short, batches = short + len(removed), batches + 1
        return run(own_vlm, prompt, removed)

    monkeypatch.setattr("vlmflow.explanation.own_passes.logits_without", counted)
    for signal in (RegionRemoval(), *SEARCHES.values()):
        short = batches = 0
        seen = []
        vlm.explain(
            pictures, QUESTION, ANSWER, signals=[signal], gradients=False,
            progress=lambda *pair, seen=seen: seen.append(pair),
        )  # fmt: skip
        assert short <= signal.forwards
        most = signal.passes().forward
        assert short + batches <= most
        assert most <= signal.forwards + math.ceil(signal.forwards / (2 * signal.width))
        # With the untouched one, and the one without the picture; the bar ends where it said.
        assert [done for done, _ in seen[:-1]] == list(range(1, len(seen)))
        assert {of for _, of in seen} == {most + 2}
        assert seen[-1] == (most + 2, most + 2)
        assert len(seen) == short + batches + 2


def test_a_searched_map_says_so(tiny, tmp_path):
    vlm, _, pictures = tiny
    signals = ["region_removal(regions=4,forwards=9)", "tam", "attention"]
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=signals, gradients=False)
    assert flow.map_info("region_removal").searched_with == "removal of image tokens"
    assert flow.map_info("tam").searched_with == flow.map_info("attention").searched_with == ""
    again = vlmflow.InformationFlow.load(flow.save(tmp_path / "flow"))
    assert again.about == flow.about
    assert again.map_info("region_removal").whole


def test_the_model_is_left_as_found(tiny):
    vlm, _, pictures = tiny
    head = vlm.model.get_output_embeddings()

    def hooks():
        modules = vlm.model.modules()
        return [(*m._forward_hooks, *m._forward_pre_hooks, *vars(m)) for m in modules]

    vlm.explain(pictures, QUESTION, ANSWER)  # transformers sets up some things once
    before = hooks()
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=["tam", "region_removal"])
    assert hooks() == before
    assert "forward" not in vars(head)
    assert all(parameter.requires_grad for parameter in vlm.model.parameters())
    again = vlm.explain(pictures, QUESTION, ANSWER, signals=["tam", "region_removal"])
    for name in flow.signals:
        np.testing.assert_array_equal(flow.maps[name], again.maps[name])


def test_settings_that_are_impossible_are_refused(tiny):
    vlm, _, pictures = tiny
    for text, message in (
        ("region_removal(forwards=32)", "forwards=32, but 16 regions .* take 33; allow that many"),
        ("region_removal(regions=1)", "regions=1; give an integer from 2"),
        ("region_removal(width=0)", "width=0; give an integer from 1"),
    ):
        with pytest.raises(InputError, match=message):
            ExplainOptions([text])
    prompt = vlm.prepare(pictures, QUESTION, ANSWER)
    with pytest.raises(InputError, match=r"'tam' runs passes of its own, .* vlm\.explain"):
        measure(
            vlm.model, vlm.decoder_layers, prompt.inputs, [prompt.layout], ExplainOptions(["tam"])
        )


@dataclass(frozen=True)
class Words(vlmflow.Signal):
    """Which tokens are words: text without special tokens."""

    reads = "logits"
    passes = Tam.passes

    def of_answer(self, seen):
        image = torch.from_numpy(seen.layout.image_positions)
        assert not seen.is_word[image].any()
        words = "".join(seen.layout.tokens[place] for place in seen.is_word.nonzero()[:, 0])
        assert words.endswith(ANSWER)
        assert QUESTION in words
        return torch.ones(1 + len(seen.layout.answer_positions), len(image))


def test_words_are_text_whatever_the_tokenizer_calls_special(tiny, monkeypatch):
    vlm, _, pictures = tiny
    assert "<s>" in vlm.processor.tokenizer.all_special_tokens
    vlm.explain(pictures, QUESTION, ANSWER, signals=[Words()])
    cls = type(vlm.processor.tokenizer)
    monkeypatch.setattr(cls, "all_special_ids", property(lambda self: []))
    vlm.explain(pictures, QUESTION, ANSWER, signals=[Words()])


@dataclass(frozen=True)
class Alone(vlmflow.Signal):
    """What the answer is worth with every token but one gone, and what its tokens speak of."""

    broken: str = ""
    reads = ("removal", "logits")

    def passes(self, tokens=0):
        del tokens
        return Passes(35, 0)

    def of_answer(self, seen):
        tokens = len(seen.layout.image_positions)
        targets = seen.without(~torch.eye(tokens, dtype=torch.bool))
        words = seen.token_ids[torch.from_numpy(seen.layout.answer_positions)]
        speaks = seen.logits(words)[torch.from_numpy(seen.layout.image_positions)]
        values = (targets - seen.intact + speaks).T
        values = torch.cat([values.sum(0, keepdim=True), values])
        return {"": values, "shape": values[:1], "nan": values / 0}[self.broken]


def test_passes_of_a_users_own_signal(tiny):
    """The same sum from eager, masked passes; other shapes and infinite values are refused."""
    vlm, eager, pictures = tiny
    flow = vlm.explain(pictures, QUESTION, ANSWER, signals=[Alone()])
    assert flow.map_info("alone").searched_with == "removal of image tokens"
    prompt = eager.prepare(pictures, QUESTION, ANSWER)
    image = prompt.layout.image_positions
    words = torch.tensor(prompt.answer_ids)
    with torch.no_grad():
        whole = eager.model(**prompt.inputs, use_cache=False).logits[0]
    rows = torch.from_numpy(prompt.layout.answer_rows)
    intact = whole[rows].log_softmax(-1).gather(1, words[:, None])[:, 0]
    for place in (0, 7, len(image) - 1):
        removed = np.arange(len(image)) != place
        own = answer_logits(eager, prompt, removed).log_softmax(-1).gather(1, words[:, None])[:, 0]
        expected = own - intact + whole[int(image[place]), words]
        values = flow.maps["alone"][0, 1:, place]
        np.testing.assert_allclose(values, expected, atol=1e-3)
    with pytest.raises(InputError, match=r"'alone' gave \(1, 32\) where .* return a tensor of sh"):
        vlm.explain(pictures, QUESTION, ANSWER, signals=[Alone("shape")])
    with pytest.raises(ModelError, match="the alone signal is not finite"):
        vlm.explain(pictures, QUESTION, ANSWER, signals=[Alone("nan")])


def test_bad_declarations_are_refused():
    def declared(**body):
        return dataclass(frozen=True)(type("BadPass", (vlmflow.Signal,), body))()

    given = {"of_answer": lambda self, seen: seen.intact, "passes": Tam.passes}
    for body, message in (
        ({"reads": "logits"}, r"define of_answer\(self, seen\)"),
        (
            {"reads": "logits", "of_answer": given["of_answer"]},
            r"define passes\(self, tokens=0\), which counts them",
        ),
        ({"reads": ("logits", "features"), **given}, "seen at different times"),
        (
            {"reads": "logits", "noise": property(lambda self: Noise(2, 0.1, 0)), **given},
            "declares noise and passes of its own; leave one of them out",
        ),
    ):
        with pytest.raises(InputError, match=message):
            ExplainOptions([declared(**body)])
