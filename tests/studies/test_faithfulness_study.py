"""A study of faithfulness measures what it says, chooses fairly, and shows it on a page."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.browser import OpenPage, running_browser
from tests.support.families import FAMILIES, picture
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, cli
from vlmflow.errors import InputError
from vlmflow.flow.signals.region_removal import RegionRemoval
from vlmflow.lvlm.batch_size import MOST
from vlmflow.reports.faithfulness.page import faithfulness_page
from vlmflow.statistics.rank_correlation import spearman
from vlmflow.studies.faithfulness import measurements, sentences, tables
from vlmflow.studies.faithfulness import samples as measuring
from vlmflow.studies.faithfulness.choice import Tried, layers_chosen
from vlmflow.studies.faithfulness.maps import TokenMap, control_maps, searched_by_removal
from vlmflow.studies.faithfulness.measurements import Appearing, Faithfulness
from vlmflow.studies.faithfulness.run import read_faithfulness, run_faithfulness
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.trust.controls import CONTROLS
from vlmflow.trust.localisation import intersection_over_union, tam_scores
from vlmflow.trust.passes import Passes
from vlmflow.trust.randomised import randomised
from vlmflow.trust.words import words_of

HOSTILE = "<script>ranPayload++</script><img src=x onerror=ranPayload++>\u202e"
QUICK = {"samples": 3, "calibration": 2, "steps": 2, "sanity": 1, "timed": 1, "draws": 40}


@dataclass(frozen=True)
class Places(vlmflow.Signal):
    """Counts the image tokens, whatever the model says."""

    name = "test_places"
    reads, summed = "attention", True
    label = "places"

    def of_layer(self, seen):
        return torch.arange(1.0, 1 + seen.attention.shape[-1])


class Noise(Task):
    """Questions about noise, with a box; some pictures are twice as many, some are broken."""

    name, metric, max_new_tokens = "noise", "accuracy", 3

    def __init__(self, pictures=1, broken=()):
        self.pictures, self.broken = pictures, broken

    def samples(self, split, count=None):
        for number in range(count):
            seed = 100 * (split == "test") + 10 * number
            shown = [picture(seed + place, (40, 40)) for place in range(self.pictures)]
            if f"{split}-{number}" in self.broken:
                shown = ["/nowhere/broken.png"]
            key = f"{split}-{number} {HOSTILE}"
            question = "What colour is the circle?"
            yield TaskSample(key, tuple(shown), question, ("red",), box=(5.0, 5, 25, 25))

    def score(self, sample, answer):
        return float(answer in sample.references)


@pytest.fixture(scope="module")
def vlm():
    model, processor = tiny_llava(7, layers=3, attn_implementation="eager")
    vlm = LVLM(model, processor, name="tiny " + HOSTILE)
    model.generation_config.suppress_tokens = list(vlm.image_token_ids)
    return vlm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faithfulness")


@pytest.fixture(scope="module")
def study(vlm, folder):
    seen = []
    study = vlmflow.faithfulness(
        vlm, Noise(2), ["saliency", Places()], out=folder, replacements=["black", "tokens"],
        progress=lambda *pair: seen.append(pair), **QUICK,
    )  # fmt: skip
    assert seen == [(number, 9) for number in range(1, 10)]  # 2 + 3 + 3 stages + 1 timed
    return study


def test_figures_are_those_of_a_slow_loop(vlm, study):
    """Whole forward passes under eager attention, pictures painted token by token."""
    sample = next(iter(Noise(2).samples("test", 1)))
    flow = vlm.explain(sample.pictures, sample.question, max_new_tokens=3, signals=["saliency"])
    own = study.measured[0]
    assert tuple(flow.settings["answer_ids"]) == own.ids
    row, layer = own.maps.index("saliency"), study.layers["saliency"]
    values = flow.map("saliency", layer)
    np.testing.assert_allclose(own.values[row], values, rtol=1e-3, atol=1e-7)

    def chances(pictures, gone=()):
        prompt = vlm.prepare(pictures, sample.question, own.ids)
        mask = torch.ones(1, len(prompt.layout), dtype=torch.long)
        mask[0, list(gone)] = 0
        positions = torch.arange(len(prompt.layout))[None]
        with torch.no_grad():
            logits = vlm.model(
                **{**prompt.inputs, "attention_mask": mask}, position_ids=positions
            ).logits[0]
        scores = logits.log_softmax(-1)[prompt.layout.answer_rows, list(own.ids)].numpy()
        return np.exp(scores).mean(), scores.mean()

    painted = [flow.pixel_map("saliency", layer, image=image) for image in range(2)]
    strengths = np.concatenate([own_map[~np.isnan(own_map)] for own_map in painted])
    half = np.sort(strengths)[::-1][: round(strengths.size / 2)]
    assert half[-1] > np.sort(strengths)[::-1][half.size]  # no tie at the middle
    first = [[np.nan_to_num(one, nan=-1) >= half[-1] for one in painted]]
    first += [[~one & ~np.isnan(part) for one, part in zip(first[0], painted, strict=True)]]
    shown = [
        [Image.fromarray(np.asarray(whole) * mask[..., None].astype(np.uint8))
         for whole, mask in zip(sample.pictures, masks, strict=True)]
        for masks in first
    ]  # fmt: skip
    black = [Image.new("RGB", whole.size) for whole in sample.pictures]
    stages = [chances(black), chances(shown[0]), chances(sample.pictures), chances(shown[1])]
    order = flow.layout.image_positions[np.argsort(-values)]
    middle = round(len(order) / 2)
    removed = [
        chances(sample.pictures, order),
        chances(sample.pictures, order[middle:]),
        chances(sample.pictures),
        chances(sample.pictures, order[:middle]),
    ]
    for replacement, (none, come, whole, left) in (("black", stages), ("tokens", removed)):
        for number in (0, 1):  # mean probability, mean log-probability
            slow = [[none[number], come[number], whole[number]],
                    [whole[number], left[number], none[number]]]  # fmt: skip
            fast = own.means[replacement][row, number]
            np.testing.assert_allclose(fast, slow, rtol=2e-3)


def test_the_layer_is_chosen_on_calibration_samples_and_frozen(study):
    tried = study.choice_frame()
    own = tried[tried["signal"] == "saliency"]
    assert own["layer"].tolist() == [0, 1, 2]
    best = own.loc[own["difference"].idxmax(), "layer"]
    assert own.loc[own["chosen"], "layer"].tolist() == [best] == [study.layers["saliency"]]
    assert study.layers["test_places"] is None
    settings = FaithfulnessSettings(draws=20)
    own = [([0.1, 0.3, 0.9], [1.0, 1.0, 0.0]), ([0.3, 0.2, 0.9], [1.0, 1.0, 1.0])]
    samples = [Tried("", {"a": {"differences": a, "defined": b}}) for a, b in own]
    chosen = layers_chosen({"a": [4, 7, 8], "b": [None]}, samples, settings)
    assert [(one.signal, one.layer) for one in chosen if one.chosen] == [("a", 7), ("b", None)]
    assert chosen[0].difference == pytest.approx(0.2)
    assert [one.defined for one in chosen] == [1, 1, 0.5, None]
    # Where no layer's map ranks anything, one of them is taken all the same.
    empty = [Tried("", {"a": {"differences": [0.1, 0.2], "defined": [0.0, 0.0]}})]
    assert layers_chosen({"a": [4, 7]}, empty, settings)[1].chosen


def test_deep_models_have_layers_evenly_spread():
    settings = FaithfulnessSettings()
    assert settings.layers_of(12) == tuple(range(12))
    assert settings.layers_of(32) == (0, 4, 9, 13, 18, 22, 27, 31)
    assert FaithfulnessSettings(layers=(5, 2)).layers_of(6) == (5, 2)
    with pytest.raises(InputError, match=r"layer=6, but the model has 6 decoder layers \(0..5\)"):
        FaithfulnessSettings(layers=(6,)).layers_of(6)


def made_up(differences, tokens=1):
    """Samples whose maps have these differences: (n, M), by one step."""
    measured = []
    for row in differences:
        means = np.zeros((len(row), 3, 2, 2))
        for number, value in enumerate(row):
            means[number, :2] = [[0.2 + value / 2, 0.6 + value / 2], [0.6 - value / 2] * 2]
        means[:, 2] = np.nan
        maps = ("a", "b", *CONTROLS)[: len(row)]
        measured.append(
            Faithfulness(maps, ("ok",) * len(row), ("x",), (1,), {"black": means},
                         np.eye(len(row)), None, 0.1, np.zeros((len(row), 4)))
        )  # fmt: skip
    return measured


def test_tables_by_hand():
    rng = np.random.default_rng(0)
    measured = made_up(rng.normal([0.3, 0, 0], 0.02, (20, 3)))
    frame = tables.map_frame(measured, [""] * 20, {"a": 2, "b": None}, (200, 0))
    own = frame[frame["score"] == "probability"].set_index("map")
    base = np.array([tables.areas([one], "black", "probability")[0, :, 2] for one in measured])
    gain = base[:, 0] - base[:, 2]
    assert own.loc["a", "difference"] == pytest.approx(base[:, 0].mean())
    assert own.loc["a", "over random"] == pytest.approx(gain.mean())
    assert own.loc["a", "over random low"] < gain.mean() < own.loc["a", "over random high"]
    assert own.loc["a", "p holm"] < 0.01 < 0.05 < own.loc["b", "p holm"]
    assert np.isnan(own.loc["random", "p"])
    assert (own.loc["a", "layer"], own.loc["a", "n"]) == (2, 20)
    needed = frame[(frame["score"] == "needed") & (frame["map"] == "a")].iloc[0]
    assert (needed["n"], needed["left out"]) == (0, 20)
    assert np.isnan(needed["difference"])
    pairs = tables.pair_frame(measured, [""] * 20, (200, 0)).set_index(["map", "other"])
    assert len(pairs) == 3
    assert pairs.loc[("a", "b"), "difference"] == pytest.approx((base[:, 0] - base[:, 1]).mean())
    assert pairs.loc[("a", "b"), "p holm"] < 0.01 < pairs.loc[("b", "random"), "p holm"]
    # Every question about a picture three times is no more evidence than once.
    thrice = tables.map_frame(
        [one for one in measured for _ in range(3)],
        [str(number) for number in range(20) for _ in range(3)],
        {"a": 2},
        (200, 0),
    )
    ends = ["difference low", "difference high", "over random low", "p"]
    np.testing.assert_allclose(
        thrice[ends].to_numpy(float), frame[ends].to_numpy(float), rtol=1e-6, atol=1e-9
    )


def test_places_by_hand():
    """Two maps, three samples, the last without function words and one without a box."""
    own = np.array([[[0, 0.5, 0.2, 0.8], [2, 0.1, 0.1, 0.9]],
                    [[1, 0.3, 0.4, 0.6], [3, 0.0, 0.3, 0.7]],
                    [[0, 0.1, 0.6, np.nan], [1, 0.2, 0.2, np.nan]]])  # fmt: skip
    blank = made_up(np.zeros((4, 2)))
    measured = [replace(one, places=own[n] if n < 3 else None) for n, one in enumerate(blank)]
    frame = tables.place_frame(measured, [""] * 4, (200, 0)).set_index("map")
    first = frame.loc["a"]
    assert (first["hits"], first["ties"], first["empty"], first["n"]) == (2 / 3, 0, 0, 3)
    assert frame.loc["b", ["hits", "ties", "empty"]].tolist() == [0, 1, 1]
    assert first["energy"] == pytest.approx(0.3)
    assert (first["object iou"], first["function iou"]) == pytest.approx((0.4, 0.7))
    assert (first["object iou n"], first["function iou n"]) == (3, 2)
    assert first["f1 iou"] == pytest.approx(2 * 0.4 * 0.7 / 1.1)
    assert first["f1 iou low"] < first["f1 iou"] < first["f1 iou high"]
    assert tables.place_frame(measured[3:], [""], (20, 0)).empty


def test_every_table_has_the_controls(study):
    assert study.maps == ("saliency", "test_places", *CONTROLS)
    frame = study.map_frame()
    assert set(frame.loc[frame["kind"] == "control", "map"]) == set(CONTROLS)
    assert len(frame) == 2 * 4 * 6
    pictures = study.picture_frame().set_index("replacement")
    removed = pictures.loc["tokens"]
    assert removed["replaced"] == pytest.approx(removed["no image token"], rel=1e-3)
    assert pictures["with picture"].nunique() == 1 or np.ptp(pictures["with picture"]) < 1e-6
    places = study.place_frame().set_index("map")
    assert places.loc["uniform", "ties"] == 3
    assert places["hits"].between(0, 1).all()
    assert (places["n"] == 3).all()
    agreement = study.agreement_frame().set_index(["map", "other"])
    ranks = [
        spearman(own.values[own.maps.index("saliency")], own.values[own.maps.index("edges")])
        for own in study.measured
    ]
    row = agreement.loc[("saliency", "edges")]
    assert row["rank correlation"] == pytest.approx(np.mean(ranks))
    assert row["rank correlation low"] < np.mean(ranks) < row["rank correlation high"]
    assert agreement.loc[("saliency", "uniform"), "n"] == 0
    random = study.maps.index("random")
    first, second = (own.values[random] for own in study.measured[:2])
    assert not np.array_equal(first, second)  # drawn anew for every sample


def test_the_maps_of_words_are_those_of_their_tokens(study, vlm):
    sample, own = next(iter(Noise(2).samples("test", 1))), study.measured[0]
    layer, row = study.layers["saliency"], own.maps.index("saliency")
    flow = vlm.explain(sample.pictures, sample.question, own.ids, signals=["saliency"])
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:25, 5:25] = True
    spoken = {False: [], True: []}
    for word in words_of(flow.answer_tokens):
        maps = [flow.pixel_map("saliency", layer, 1 + token) for token in word.tokens]
        spoken[word.is_function].append([values.astype(np.float64) for values in maps])
    assert spoken[False]
    ious = [max(intersection_over_union(m, mask) for m in maps) for maps in spoken[False]]
    scores = tam_scores(spoken[False], spoken[True], mask)
    assert own.places[row, 2] == pytest.approx(np.mean(ious), abs=1e-3)
    assert own.places[row, 2] == pytest.approx(scores.object_iou, abs=1e-3)
    whole = intersection_over_union(flow.pixel_map("saliency", layer), mask)
    assert abs(np.mean(ious) - whole) > 0.01  # words are not the whole answer
    energy = flow.pixel_map("saliency", layer)
    assert own.places[row, 1] == pytest.approx(energy[mask].sum() / energy.sum(), rel=1e-3)


def test_a_map_that_survives_drawn_weights_is_seen(study, vlm):
    frame = study.drawn_frame().set_index(["map", "weights drawn"])["rank correlation"]
    assert frame["test_places"].tolist() == pytest.approx([1, 1, 1])
    assert abs(frame["saliency", "everything"]) < 0.9
    sample = next(iter(Noise(2).samples("test", 1)))
    own = study.measured[0]
    with randomised(vlm, "decoder", 0):
        flow = vlm.explain(sample.pictures, sample.question, own.ids, signals=["saliency"])
    rank = spearman(flow.map("saliency", study.layers["saliency"]), own.values[0])
    assert frame["saliency", "decoder"] == pytest.approx(rank, abs=1e-3)


def test_costs_are_counted(study):
    costs = study.cost_frame().set_index("map")
    assert costs.loc["saliency", ["forward", "backward"]].tolist() == [2, 1]
    assert costs.loc["test_places", ["forward", "backward"]].tolist() == [2, 0]
    assert (costs["times a forward pass"] > 1).all()


def test_the_same_call_takes_everything_from_the_store(study, vlm, folder, monkeypatch):
    monkeypatch.setattr(measuring, "explained", None)
    monkeypatch.setattr(measuring, "measure_maps", None)
    again = run_faithfulness(vlm, Noise(2), ["saliency", Places()], study.settings, folder)
    read = read_faithfulness(folder, Noise(2))
    written = json.loads((folder / "faithfulness.json").read_text("utf-8"))
    for other in (again, read):
        assert json.loads(json.dumps(other.to_json(), allow_nan=False)) == written
        assert other.cost_frame().equals(study.cost_frame())


def test_an_interrupted_study_goes_on_and_failures_are_named(vlm, tmp_path, monkeypatch):
    task = Noise(broken=("calibration-1", "test-1"))
    settings = FaithfulnessSettings(**QUICK, replacements=("tokens",), layers=(0, 2))
    whole = run_faithfulness(vlm, task, ["saliency"], settings, tmp_path / "whole")
    named = [(failure.split, failure.key) for failure in whole.failures]
    expected = [("calibration", f"calibration-1 {HOSTILE}"), ("test", f"test-1 {HOSTILE}")]
    assert named == expected
    assert "broken.png" in whole.failures[0].reason
    assert len(whole.measured) == 2
    assert "2 samples failed (1 of calibration, 1 of test)" in sentences.second_line(whole.facts)
    assert whole.sample_frame()["failure"].notna().tolist() == [False, True, False]
    measure, measured = measuring.measure_maps, []

    def interrupted(*given):
        if measured:
            raise KeyboardInterrupt
        measured.append(given)
        return measure(*given)

    monkeypatch.setattr(measuring, "measure_maps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_faithfulness(vlm, task, ["saliency"], settings, tmp_path / "out")
    with pytest.raises(InputError, match="not finished; run the same 'vlmflow faithfulness'"):
        read_faithfulness(tmp_path / "out", task)
    again = []
    monkeypatch.setattr(
        measuring, "measure_maps", lambda *given: again.append(given) or measure(*given)
    )
    ended = run_faithfulness(vlm, task, ["saliency"], settings, tmp_path / "out")
    assert len(again) == 1  # of three samples one is stored and one is broken
    assert json.dumps(ended.to_json()) == json.dumps(whole.to_json())


SIZED = {**QUICK, "samples": 2, "steps": 4, "sanity": 0, "timed": 0, "layers": (1,)}


def sized(vlm, batch):
    """A study of both kinds of passes, with eight stages to a curve."""
    settings = FaithfulnessSettings(**SIZED, replacements=("black", "tokens"), batch=batch)
    return run_faithfulness(vlm, Noise(), ["saliency"], settings)


def curves(study):
    return np.stack([means for own in study.measured for means in own.means.values()])


@pytest.fixture(scope="module")
def one_by_one(vlm):
    return sized(vlm, 1)


@contextmanager
def little_memory(vlm, rows, ran):
    """A model that takes so many sequences at once, and no more."""

    def before(layer, args, kwargs):
        count = len(args[0] if args else kwargs["hidden_states"])
        if count > rows:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {count} sequences.")
        ran.append(count)

    handle = vlm.decoder_layers[0].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_curves_do_not_depend_on_how_many_pictures_are_shown_at_once(vlm, one_by_one):
    assert [own.batch for own in one_by_one.measured] == [1, 1]
    for batch, used in ((3, 3), ("auto", MOST)):
        other = sized(vlm, batch)
        np.testing.assert_allclose(curves(other), curves(one_by_one), rtol=1e-5, atol=1e-6)
        assert [own.batch for own in other.measured] == [used] * 2
        assert other.sample_frame()["batch"].tolist() == [used] * 2
        plain = other.to_json()
        assert (plain["smallest_batch"], plain["largest_batch"]) == (used, used)
        assert plain["settings"]["batch"] == batch


def test_where_memory_runs_out_a_pass_is_halved_and_so_are_later_ones(vlm, one_by_one):
    ran = []
    with little_memory(vlm, 2, ran):
        study = sized(vlm, 8)
    assert study.failures == ()
    np.testing.assert_allclose(curves(study), curves(one_by_one), rtol=1e-5, atol=1e-6)
    assert max(ran) == 2
    plain = study.to_json()
    assert (plain["smallest_batch"], plain["largest_batch"]) == (2, 2)


def test_where_not_even_one_picture_fits_the_sample_fails_in_a_sentence(vlm):
    tested = next(iter(Noise().samples("test", 1)))
    scored = measurements.answer_logprobs

    def without_memory(model, sets, question, answer, *, passes):
        whole = np.asarray(sets[SIZED["steps"]][0])
        is_first = np.array_equal(whole, np.asarray(tested.pictures[0]))
        with little_memory(model, 0 if is_first else MOST, []):
            return scored(model, sets, question, answer, passes=passes)

    settings = FaithfulnessSettings(**SIZED, replacements=("black",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "answer_logprobs", without_memory)
        study = run_faithfulness(vlm, Noise(), ["saliency"], settings)
    (failure,) = study.failures
    assert failure.key == tested.key
    assert failure.reason == "OutOfMemoryError: CUDA out of memory: 1 sequences."
    assert len(study.measured) == 1


def test_the_next_sample_is_prepared_beside_the_model(vlm):
    prepared = []
    prepare = LVLM.prepare

    def noted(self, pictures, question, *rest):
        if not rest and threading.current_thread() is not threading.main_thread():
            prepared.append(np.asarray(pictures[0]))
        return prepare(self, pictures, question, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LVLM, "prepare", noted)
        sized(vlm, "auto")
    tested = list(Noise().samples("test", 2))
    assert len(prepared) == len(tested)  # one layer leaves nothing to calibrate
    for own, sample in zip(prepared, tested, strict=True):
        np.testing.assert_array_equal(own, np.asarray(sample.pictures[0]))


def test_where_every_sample_fails_the_first_is_named(vlm):
    broken = Noise(broken=("calibration-0", "calibration-1"))
    quick = {**QUICK, "samples": 1}
    with pytest.raises(InputError, match=r"no calibration sample of noise .* first, .*broken\.png"):
        vlmflow.faithfulness(vlm, broken, ["saliency"], **quick)
    with pytest.raises(InputError, match=r"no sample of noise could be explained; the last, test"):
        vlmflow.faithfulness(
            vlm, Noise(broken=[f"{split}-{number}" for split in ("calibration", "test")
                               for number in range(8)]), ["saliency"], **quick,
        )  # fmt: skip


KINDS = ("llava_next", "qwen2_5_vl", "gemma3", "lfm2_vl", "blip-2")
TRIED = [family for family in FAMILIES if str(family.name) in KINDS]


@pytest.mark.parametrize("family", TRIED, ids=lambda family: family.name)
def test_families_of_every_kind(family):
    """Tiles and ends of rows, dynamic sizes, windows with picture blocks, states, queries."""
    vlm = family.lvlm()
    vlm.model.generation_config.suppress_tokens = [
        *vlm.image_token_ids, vlm.processor.tokenizer.eos_token_id
    ]  # fmt: skip
    settings = FaithfulnessSettings(
        samples=1, calibration=0, steps=2, sanity=0, timed=0, draws=5, layers=(1,)
    )
    pictures = 1 if family.queries else 2
    study = run_faithfulness(vlm, Noise(pictures), ["attention"], settings)
    assert study.failures == ()
    assert study.layers == {"attention": 1}
    ends = [means[0, 0, 0, -1] for means in study.measured[0].means.values()]
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)  # the whole picture, all of its tokens


def test_tokens_without_a_place_have_a_control_all_the_same():
    """The ends of rows in LLaVA-NeXT: drawn from the others, so that no order favours them."""
    family = next(family for family in FAMILIES if family.name == "llava_next")
    flow = family.lvlm().explain(picture(0, (50, 20)), "What?", "1", signals=["attention"],
                                 gradients=False)  # fmt: skip
    maps = control_maps(flow.layout, [picture(0, (50, 20))], 3)
    placed = ~np.isnan(flow.token_boxes()).any(1)
    assert not placed.all()
    for name, made in maps.items():
        assert np.isfinite(made.values).all()
        assert set(made.values[~placed]) <= set(made.values[placed]) or name == "random"
    assert np.ptp(maps["uniform"].values) == 0
    assert (
        np.isnan(maps["edges"].painted[0]).tolist() == np.isnan(maps["random"].painted[0]).tolist()
    )


def test_controls_leave_out_what_is_cropped_away(vlm):
    shown = picture(0, (40, 30))
    flow = vlm.explain(shown, "What?", "red", signals=["attention"], gradients=False)
    unseen = np.isnan(flow.pixel_map("attention", 0))
    assert unseen.any()
    for made in control_maps(flow.layout, [shown], 0).values():
        np.testing.assert_array_equal(np.isnan(made.painted[0]), unseen)


def test_protocols():
    eagle = FaithfulnessSettings(protocol="eagle")
    assert (eagle.shown, eagle.count, eagle.regions) == (("black",), 64, 8)
    plain = FaithfulnessSettings()
    assert (plain.shown, plain.count, plain.regions) == (("black", "tokens"), 16, 0)
    assert FaithfulnessSettings(steps=4, replacements=("blur", "blur")).shown == ("blur",)


def test_eagle_replays_regions(vlm):
    """Maps of the same means over regions are the same map, wherever in them their peaks are."""
    sample = next(iter(Noise().samples("test", 1)))
    prompt = vlm.prepare(sample.pictures, sample.question, "red circle")
    eagle, passes = FaithfulnessSettings(protocol="eagle"), {"black": Passes(64, vlm.device)}
    means = np.random.default_rng(0).random((8, 8))
    maps = []
    for place in ((0, 0), (4, 3)):
        values = np.zeros((40, 40))
        values[place[0] :: 5, place[1] :: 5] = means
        maps.append(TokenMap(np.zeros(1), (values,)))
    curves = [
        Appearing(vlm, prompt, sample.question, eagle, 0, passes).means(one, "black", 64)
        for one in maps
    ]
    np.testing.assert_array_equal(*curves)
    pixels = FaithfulnessSettings(replacements=("black",), steps=4)
    others = [
        Appearing(vlm, prompt, sample.question, pixels, 0, passes).means(one, "black", 4)
        for one in maps
    ]
    assert not np.array_equal(*others)


def test_maps_searched_by_removal_are_marked(study):
    assert searched_by_removal(RegionRemoval())
    assert not searched_by_removal(Places())
    marked = replace(study, in_sample=("saliency",))
    frame = marked.map_frame()
    rows = sentences.main_rows(marked.facts, frame)
    shown = [row["map"] for row in rows if "in-sample" in row["map"]]
    assert shown == [f"{marked.label('saliency')} (in-sample)"]
    assert sum("in-sample" in line for line in sentences.caveats(marked.facts, frame)) == 1
    assert not any("in-sample" in line for line in sentences.caveats(study.facts, frame))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protocol": "owl"}, "protocol='owl' is none of vlmflow, eagle"),
        ({"protocol": "eagle", "steps": 32}, "steps=32, but protocol='eagle' has 64"),
        ({"protocol": "eagle", "replacements": ["blur"]}, r"has \('black',\)"),
        ({"replacements": ["pink"]}, "'pink' is none of black, blur, mean, tokens"),
        ({"replacements": "black"}, r"replacements='black' is not a list; pass one"),
        ({"replacements": []}, r"replacements=\(\) is empty"),
        ({"layers": [9]}, "layer=9, but the model has 3 decoder layers"),
        ({"steps": 0}, "steps=0"),
        ({"samples": 0}, "samples=0"),
        ({"batch": 0}, "batch=0; give an integer from 1 .*, or auto"),
        ({"batch": "none"}, "batch='none'; give an integer"),
        ({"batch": True}, "batch=True; give an integer"),
        ({"batch": 1.5}, "batch=1.5; give an integer"),
        ({"sanity": -1}, "sanity=-1"),
        ({"calibration": 0}, "calibration=0, but the layer of saliency has to be chosen"),
        ({"signals": ["nothing"]}, "signal 'nothing' is unknown"),
    ],
)
def test_what_makes_no_study_is_refused(vlm, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        vlmflow.faithfulness(vlm, Noise(), **{"signals": ["saliency"], **QUICK, **given})


def test_a_signal_called_like_a_control_is_refused(vlm):
    taken = type("Taken", (Places,), {"name": "random", "version": "1"})
    try:
        with pytest.raises(InputError, match="signal 'random' is called like a control"):
            vlmflow.faithfulness(vlm, Noise(), [taken()], **QUICK)
    finally:
        taken.name = "test_taken"


def test_findings_in_words(study):
    measured = made_up(np.random.default_rng(1).normal([0.3, 0, 0], 0.02, (12, 3)))
    frame = tables.map_frame(measured, [""] * 12, {"a": 2, "b": None}, (100, 0))
    made = replace(
        study.facts,
        task="made up",
        settings=FaithfulnessSettings(replacements=("black",)),
        labels={"a": "saliency, layer 2", "b": "places", "random": "random (control)"},
    )
    text = sentences.headline(made, frame)
    assert text.startswith("made up: where black covers the picture, saliency, layer 2 ranks")
    assert sentences.main_rows(made, frame)[0]["chance"] == "better"
    # The best signal where a control is as good, and where nothing is shown.
    worse = frame.copy()
    worse.loc[worse["map"] == "random", "difference"] = 0.9
    assert "the control random, which knows nothing" in sentences.caveats(made, worse)[0]
    worse["p holm"] = 1.0
    assert "no map is shown to rank regions better than chance" in sentences.headline(made, worse)


def test_the_page_and_the_notebook_show_the_study_and_run_nothing(study, folder):
    html = study._repr_html_()
    frame = study.map_frame()
    assert sentences.headline(study.facts, frame) in unescape(html)
    assert html.count("<tr") == 1 + 2 * 6
    hostile = replace(study, task=HOSTILE)
    assert "<script" not in hostile._repr_html_()
    assert "⟦U+202E⟧" in hostile._repr_html_()
    path = folder / "faithfulness.html"
    assert path.read_text("utf-8") == faithfulness_page(study)
    assert "\u202e" not in path.read_text("utf-8")
    with running_browser() as browser:
        opened = OpenPage(browser, path)
        page = opened.page
        assert page.inner_text("h1") == sentences.headline(study.facts, frame)
        assert page.locator("[aria-label='Maps'] tbody tr").count() == 2 * 6
        assert page.locator("figure svg:visible").count() == 3
        assert page.evaluate("window.ranPayload") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        # However wide the figures, the maps' names are not squeezed into a column of letters.
        page.evaluate(
            'for (const cell of document.querySelectorAll(\'[aria-label="Where maps lie"] '
            "td[data-name$=IoU]')) cell.textContent = '0.165 (0.084\\u00a0to\\u00a00.234)'"
        )
        names = page.locator("[aria-label='Where maps lie'] tbody td:first-child")
        assert min(box["width"] for box in (n.bounding_box() for n in names.all())) > 150
        page.set_viewport_size({"width": 390, "height": 800})
        assert min(box["width"] for box in (n.bounding_box() for n in names.all())) > 300
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []


def test_the_command_writes_everything_and_reports(tmp_path):
    for part in tiny_llava(7, layers=3):
        part.save_pretrained(tmp_path / "model")
    lines = []
    for number in range(3):
        picture(number, (40, 34)).save(tmp_path / f"{number}.png")
        line = {"image": f"{number}.png", "question": "What?", "answer": "red"}
        lines.append({**line, "split": "calibration" if number == 0 else "test"})
    (tmp_path / "noise.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["faithfulness", tmp_path / "noise.jsonl", "--model", tmp_path / "model", "--out"]
    arguments += [tmp_path / "out", "--signals", "attention", "--replacement", "tokens"]
    arguments += ["--steps", 2, "--samples", 2, "--calibration", 1, "--sanity", 1, "--timed", 0]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "random (control)" in result.stdout
    names = {"faithfulness", "curves"}
    figures = {f"{name}.{form}" for name in names for form in ("png", "pdf")}
    frames = {"maps", "pairs", "pictures", "curves", "agreement", "drawn_weights", "layers_tried",
              "samples"}  # fmt: skip
    expected = {*figures, *(f"{name}.csv" for name in frames), "faithfulness.html",
                "faithfulness.json", "faithfulness.sqlite", "faithfulness.lock"}  # fmt: skip
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == expected
    again = CliRunner().invoke(
        cli.app, ["report", str(tmp_path / "out"), "--out", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    assert again.stdout.split("written to")[0] == result.stdout.split("written to")[0]
    for name in ("maps.csv", "faithfulness.json", "faithfulness.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes-juggling"], "unknown task 'scenes-juggling'"),
        (["scenes-reading", "--samples", "0"], "--samples 0 is out of range"),
        (["scenes-reading", "--signals", "nothing"], "signal 'nothing' is unknown"),
        (["scenes-reading", "--batch", "none"], "'none' is neither auto nor a number from 1 on"),
        (["scenes-reading", "--batch", "0"], "'0' is neither auto nor a number from 1 on"),
        (["scenes-reading", "--batch", "1.5"], "'1.5' is neither auto nor a number from 1 on"),
        (["scenes-reading", "--protocol", "eagle", "--steps", "3"], "protocol='eagle' has 64"),
        (["scenes-reading", "--replacement", "pink"], "'pink'"),
    ],
)
def test_the_command_refuses_bad_input_and_writes_nothing(tmp_path, arguments, message):
    out = tmp_path / "out"
    result = CliRunner().invoke(cli.app, ["faithfulness", *arguments, "--out", str(out)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()
