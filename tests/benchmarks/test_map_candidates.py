"""The search for maps: its candidates are what their names say, and are judged on calibration."""

from __future__ import annotations

import numpy as np
import pytest

import vlmflow
from benchmarks import map_candidates
from tests.support.number_format import QUICK
from vlmflow.tasks.registry import as_task


def test_candidates_are_made_of_the_maps_they_name():
    rng = np.random.default_rng(0)
    maps = {name: rng.random((12, 16)) for name in map_candidates.MEASURED}
    maps |= {name: rng.random(16) for name in ("flow map", "tam", "gradient x input")}
    made = map_candidates.candidates(maps)
    scaled = [maps[name][4] / maps[name][4].mean() for name in ("text", "sal")]
    np.testing.assert_allclose(made["text 4 + sal 4"], scaled[0] + scaled[1])
    np.testing.assert_allclose(made["text 4 x sal 4"], scaled[0] * scaled[1])
    np.testing.assert_array_equal(made["att 3"], maps["att"][3])
    for name, values in made.items():
        assert values.shape == (16,), name
        assert np.isfinite(values).all(), name


def test_one_sample_is_judged_as_the_study_judges_it():
    """The map that came out of the search, against ``vlmflow.faithfulness`` on that sample."""
    judged = map_candidates.judge(
        "scenes-reading", range(1), lambda name: name == "text 4 + sal 4", QUICK or "bfloat16"
    )

    class First(type(as_task("scenes-reading"))):  # type: ignore[misc]
        """The calibration split in the place of the test split."""

        def samples(self, split, limit=None):
            return super().samples("calibration", limit)

    study = vlmflow.faithfulness(
        vlmflow.load("scenes-llava", dtype=QUICK or "bfloat16"),
        First("scenes-reading"),
        ["combined(parts=text_attention:1/3+saliency:1/3)"],
        samples=1, calibration=0, replacements=("black",), steps=8, sanity=0, timed=0,
    )  # fmt: skip
    frame = study.map_frame().query("score == 'probability'")
    (row,) = frame[frame["map"] == "combined"].to_dict("records")
    # Pixels that no token looks at come in an order that is drawn for each sample.
    assert judged["text 4 + sal 4"] == [pytest.approx(row["difference"], abs=1e-2)]
