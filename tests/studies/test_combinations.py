"""Combinations are chosen on the calibration split, frozen into a signal, reported on others."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import vlmflow
from tests.studies.test_faithfulness_study import Noise
from tests.support.tiny import tiny_llava
from vlmflow.errors import InputError
from vlmflow.flow.options import ExplainOptions
from vlmflow.studies.faithfulness import measurements
from vlmflow.studies.faithfulness.choice import Tried
from vlmflow.studies.faithfulness.combinations import candidates
from vlmflow.studies.faithfulness.run import read_faithfulness
from vlmflow.studies.faithfulness.settings import FaithfulnessSettings

MIDDLE = {"upper": (5, 6), "lower": (9, 10), "corner": (0, 3)}
"""Of 4 x 4 image tokens: the two halves of the middle, and two that say nothing."""


@dataclass(frozen=True)
class Half(vlmflow.Signal):
    """Marks two image tokens, whatever the model says."""

    side: str = "upper"
    name = "test_half"
    reads, summed = "attention", True

    def of_layer(self, seen):
        values = torch.zeros(seen.attention.shape[-1])
        values[list(MIDDLE[self.side])] = 1.0
        return values


def reads_the_middle(_vlm, sets, _question, answer, *, passes):
    """A model that is as sure as the share of the picture's middle that is shown."""
    whole = np.asarray(sets[len(sets) // 2][0])[10:30, 10:30]
    seen = [(np.asarray(own)[10:30, 10:30] == whole).all(-1).mean() for (own,) in sets]
    return np.log(0.05 + 0.9 * np.repeat(np.array(seen)[:, None], len(answer), axis=1))


class Plain(Noise):
    """Without boxes."""

    def samples(self, split, count=None):
        return (replace(sample, box=None) for sample in super().samples(split, count))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    model, processor = tiny_llava(7, layers=3)
    vlm = vlmflow.LVLM(model, processor, name="tiny")
    model.generation_config.suppress_tokens = list(vlm.image_token_ids)
    folder = tmp_path_factory.mktemp("combined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "answer_logprobs", reads_the_middle)
        seen = []
        study = vlmflow.faithfulness(
            vlm, Plain(), [Half(side) for side in MIDDLE], out=folder, samples=5, calibration=4,
            combine=True, replacements=["black"], steps=8, sanity=0, timed=0, draws=100,
            progress=lambda *pair: seen.append(pair),
        )  # fmt: skip
    assert seen[-1] == (13, 13)  # 4 samples twice, 5
    return study, folder


def test_the_sum_of_two_half_right_maps_is_chosen(study):
    study, _ = study
    rows = study.combination_frame()
    assert rows["is_single"].sum() == 3
    assert len(rows) == 3 + 3 * 2
    assert rows["difference"].is_monotonic_decreasing
    best, alone = (rows[rows["chosen"] & (rows["is_single"] == kind)] for kind in (False, True))
    text = "combined(parts=\"test_half(side='lower')+test_half\")"
    assert best["map"].tolist() == [text]
    # By hand: the middle is a quarter of the area, and comes first: 2 of 8 steps up, then 1.
    assert best["difference"].item() == pytest.approx(0.9 * 0.75, abs=1e-6)
    assert alone["map"].item() in ("test_half", "test_half(side='lower')")
    # Half of it comes first, the rest among all others: half as far from 0 on average.
    assert alone["difference"].item() == pytest.approx(0.9 * 0.375, abs=0.2)
    assert ExplainOptions([text]).named["combined"].made_of[0].signal == Half("lower")


def test_it_is_reported_on_the_test_split_beside_the_best_single_map(study):
    study, folder = study
    name, single = study.combined
    frame = study.map_frame().set_index(["score", "map"])
    own = frame.loc[("probability", name)]
    assert own["difference"] == pytest.approx(0.9 * 0.75, abs=1e-6)
    gain = own["difference"] - frame.loc[("probability", single), "difference"]
    pairs = study.pair_frame()
    row = pairs[(pairs["map"] == single) & (pairs["other"] == name)].iloc[0]
    assert row["difference"] == pytest.approx(-gain)
    first, second, last = study.combined_lines()
    assert first.startswith("Of 6 combinations of the signals' maps")
    assert (
        f"deletion differs by {gain:+.3f} ({-row['high']:+.3f} to {-row['low']:+.3f}; p = "
        in second
    )
    assert f"p = {row['p holm']:.3f}, corrected" in second
    assert shlex.split(last.partition("--signals ")[2]) == [
        "combined(parts=\"test_half(side='lower')+test_half\")"
    ]
    page = (folder / "faithfulness.html").read_text("utf-8")
    assert "Of 6 combinations of the signals" in page
    assert (folder / "combinations_tried.csv").is_file()
    again = read_faithfulness(folder, Plain())
    assert again.combinations == study.combinations
    assert again.combined == study.combined


def test_what_is_tried_is_what_comes_out_best():
    """Five signals, the worst left out; sums over the first layers where there are layers."""
    names = ("saliency", "attention", "flow_map", "llava_cam", "sensitivity", "tam")
    named = ExplainOptions(list(names)).named
    tried = {name: (0, 2, 4, 6) if name in ("saliency", "attention", "llava_cam") else (None,)
             for name in names}  # fmt: skip
    height = dict(zip(names, (0.5, 0.4, 0.3, 0.0, 0.2, 0.9), strict=True))
    measured = {
        name: {"differences": [height[name]] * len(own), "defined": [1.0] * len(own)}
        for name, own in tried.items()
    }
    frozen = {"saliency": 4, "attention": 0, "flow_map": None, "llava_cam": 2,
              "sensitivity": None, "tam": None}  # fmt: skip
    pool = candidates(named, tried, frozen, [Tried("", measured)])
    parts = [signal.parts for signal in pool.values()]
    pairs = ["saliency:4+attention:0", "saliency:4+flow_map", "saliency:4+sensitivity",
             "attention:0+flow_map", "attention:0+sensitivity", "flow_map+sensitivity"]  # fmt: skip
    assert parts[:12] == [pair for pair in pairs for _ in range(2)]
    sums = [f"{name}:0-{layer}" for name in ("saliency", "attention") for layer in (2, 4, 6)]
    assert parts[12:] == sums
    assert not any("tam" in part for part in parts)  # it is not of the shared passes


def test_settings_that_leave_nothing_to_choose_are_refused():
    with pytest.raises(InputError, match="combinations are chosen on calibration samples"):
        FaithfulnessSettings(combine=True, calibration=0)
    with pytest.raises(InputError, match="combine='yes' is neither True nor False"):
        FaithfulnessSettings(combine="yes")
