"""A result that is tested as it is explained: the same numbers, kept, saved and read back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

import vlmflow
from tests.support.synthetic import synthetic_flow
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.map_info import MapInfo
from vlmflow.result.map_trust import Curves, Trust
from vlmflow.trust import scoring
from vlmflow.trust.of_explanation import with_trust


def picture(seed, size=(60, 40)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.LVLM(*tiny_llava(3, layers=3), name="tiny")


def test_the_shown_map_is_tested_in_large_batches_and_kept(vlm, monkeypatch, tmp_path):
    batches = []
    forward = scoring.logits_at
    monkeypatch.setattr(
        scoring,
        "logits_at",
        lambda *call: batches.append(len(call[1]["input_ids"])) or forward(*call),
    )
    seen = []
    flow = vlm.explain(
        picture(0), "What?", "1 2", trust=True, progress=lambda *done: seen.append(done)
    )
    assert batches == [1, 15, *[16] * 8]  # the first shows how much memory one takes
    assert seen[-1] == (144, 144)
    (tested,) = flow.trust
    assert (tested.signal, tested.layer, tested.target) == ("sensitivity", None, 0)
    alone = vlm.trust(flow, "sensitivity", steps=8)
    np.testing.assert_allclose(tested.curves.insertion, alone.curves.insertion, rtol=1e-5)
    np.testing.assert_allclose(tested.random, alone.random, rtol=1e-4, atol=1e-7)
    assert str(tested) == str(alone)
    (again,) = InformationFlow.load(flow.save(tmp_path)).trust
    assert again.to_json() == tested.to_json()
    assert str(again) == str(tested)
    assert (again.limit, again.difference) == (tested.limit, tested.difference)


def test_of_several_pictures_the_one_that_the_map_points_at_comes_and_goes(vlm, monkeypatch):
    pictures = [picture(1), picture(2), picture(3)]
    flow = vlm.explain(pictures, "What?", "1 2")
    values = np.zeros_like(flow.maps["sensitivity"])
    values[..., -3] = 1  # a token of the last picture
    flow = dataclasses.replace(flow, maps={**flow.maps, "sensitivity": values})
    shown = []
    scored = scoring.token_probabilities
    monkeypatch.setattr(
        "vlmflow.trust.trust.token_probabilities",
        lambda *call, **rest: shown.append(call[3]) or scored(*call, **rest),
    )
    (tested,) = with_trust(vlm, flow, pictures).trust
    assert tested.image == 2
    assert set(shown) == {2}


def test_a_result_without_a_map_that_ranks_is_refused(vlm):
    flow = vlm.explain(picture(0), "What?", "1 2", signals=["llava_cam"])
    empty = {"llava_cam": np.full_like(flow.flags["llava_cam"], 2)}
    with pytest.raises(InputError, match=r"no map .* ranks anything.*leave trust out"):
        with_trust(vlm, dataclasses.replace(flow, flags=empty), [picture(0)])


def made_up(**changes) -> Trust:
    fields = {
        "about": MapInfo("flow_map"), "layer": None, "token": "", "replacement": "black",
        "curves": Curves(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.25, 0.0])),
        "random": (0.1, -0.2), "signal": "flow_map",
    }  # fmt: skip
    return Trust(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "mine"}, "'mine', of which there is no map"),
        ({"target": 9}, "does not have"),
        ({"target": 1}, "does not have"),  # its token's text is missing
        ({"image": 1}, "does not have"),
        ({"random": ()}, "two curves"),
        ({"random": (np.inf,)}, "all finite"),
        ({"curves": Curves(np.zeros(3), np.zeros(2))}, "two curves of the same steps"),
    ],
)
def test_trust_that_is_of_another_result_is_refused(changes, message):
    flow = synthetic_flow(layers=2, grid=(2, 2))
    assert dataclasses.replace(flow, trust=[made_up()]).trust[0].steps == 2
    with pytest.raises(InputError, match=message):
        dataclasses.replace(flow, trust=[made_up(**changes)])
