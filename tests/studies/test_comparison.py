"""Rankings against random tokens: known answers, equal cost, and a ranking of one's own."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.studies.test_own_tasks import Brightness
from tests.support.synthetic_study import HOSTILE, synthetic_study
from tests.support.tiny import tiny_llava
from vlmflow import cli
from vlmflow.errors import InputError
from vlmflow.reports.comparison.latex import latex, latex_table
from vlmflow.reports.comparison.page import comparison_page
from vlmflow.statistics.intervals import Estimate, paired_difference
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value
from vlmflow.studies.comparison.arms import compared_rankings, compared_truncations
from vlmflow.studies.comparison.comparison import Comparison
from vlmflow.studies.comparison.equal_cost import scores_at_cost
from vlmflow.studies.comparison.rows import BETTER, UNKNOWN, WORSE
from vlmflow.studies.comparison.sentences import headline
from vlmflow.studies.truncations.plan import Plan
from vlmflow.truncation.rankings.random import Random

ACCURACY = {"diversity": 0.9, "key_norm": 0.3, "last_attention": 0.61, "saliency": 0.95}


def plan_of(rankings, keeps=(0.5, 0.25), *, timed=4, samples=100):
    return Plan(
        task="scenes-reasoning",
        truncations=compared_truncations(compared_rankings(rankings, 0), 2, keeps),
        samples=samples,
        calibration=max(timed, 1),
        timed=timed,
        controls=(),
    )


def accuracy(arm, _split):
    if arm.truncation is None:
        return 1.0
    if not arm.truncation.ranks:
        return 0.0
    ranking = arm.truncation.ranking
    # Three draws, 0.6 together
    drawn = {0: 0.5, 1: 0.6, 2: 0.7}[ranking.seed] if isinstance(ranking, Random) else None
    return ACCURACY.get(ranking.known_as(), 0.6) if drawn is None else drawn


@pytest.fixture(scope="module")
def comparison():
    return Comparison(synthetic_study(plan_of(list(ACCURACY)), accuracy))


def test_gains_are_paired_with_the_mean_of_random_draws(comparison):
    # Samples are right in order of their luck: of 100, the first 50, 60 and 70 by the draws.
    luck = np.arange(100) / 100
    drawn = np.mean([luck < share for share in (0.5, 0.6, 0.7)], axis=0)
    assert comparison.draws == 3
    p_values = []
    for row in comparison.rows:
        own = (luck < ACCURACY.get(row.ranking.known_as(), 0.6)).astype(float)
        wanted = paired_difference(own.tolist(), drawn.tolist())
        assert row.gain.value == pytest.approx(wanted.value)
        assert (row.gain.low, row.gain.high) == pytest.approx((wanted.low, wanted.high))
        assert row.lost.value == pytest.approx(own.mean() - 1)
        p_values.append(sign_flip_p_value(own - drawn))
    # Flips are drawn in the order of samples, which here is another one.
    assert [row.p_value for row in comparison.rows] == pytest.approx(p_values, abs=0.03)
    corrected = holm_adjusted([row.p_value for row in comparison.rows])
    assert [row.adjusted for row in comparison.rows] == pytest.approx(corrected)


def test_verdicts_follow_the_corrected_tests(comparison):
    verdicts = {
        ranking.known_as(): {comparison.row(ranking, keep).verdict for keep in comparison.keeps}
        for ranking in comparison.rankings
    }
    assert verdicts == {
        "saliency": {BETTER},
        "diversity": {BETTER},
        "last_attention": {UNKNOWN},
        "uniform": {UNKNOWN},
        "key_norm": {WORSE},
    }
    assert next(iter(verdicts)) == "saliency"  # the largest gain first
    words = headline("t", comparison.layer, comparison.keeps, comparison.rows)
    # saliency looks at the answer, and is none of them.
    assert words.endswith(
        "of 4 rankings 1 beat random tokens at 50 %, 1 at 25 %; furthest above is diversity, by "
        "30.0 points at 50 %"
    )


@pytest.mark.parametrize(
    ("adjusted", "gain", "wanted"),
    [
        (0.04, (0.1, 0.01, 0.2), BETTER),
        (0.04, (-0.1, -0.2, -0.01), WORSE),
        (0.06, (0.1, 0.01, 0.2), UNKNOWN),  # the interval alone is not corrected
        (0.04, (0.1, -0.01, 0.2), UNKNOWN),  # the test alone
        (0.04, (-0.1, -0.2, 0.01), UNKNOWN),
        (0.05, (0.1, 0.01, 0.2), BETTER),
        (0.04, (0.1, 0.0, 0.2), UNKNOWN),
    ],
)
def test_a_verdict_takes_the_corrected_test_and_the_interval(comparison, adjusted, gain, wanted):
    row = replace(comparison.rows[0], adjusted=adjusted, gain=Estimate(*gain))
    assert row.verdict == wanted


def test_random_tokens_at_equal_cost():
    scores = np.array([[0.0, 1.0], [1.0, 1.0]])
    for cost, wanted in [
        (0.1, [0, 1]), (0.5, [0, 1]), (0.75, [0.5, 1]), (1.0, [1, 1]), (3.0, [1, 1])
    ]:  # fmt: skip
        np.testing.assert_allclose(scores_at_cost([0.5, 1.0], scores, cost), wanted)
    # A dearer measurement of fewer tokens is noise: both count as the dearer.
    np.testing.assert_allclose(
        scores_at_cost([0.6, 0.5, 1.0], np.array([[0.0], [0.5], [1.0]]), 0.8), [0.75]
    )


def test_a_ranking_that_costs_more_has_to_beat_more_random_tokens():
    """One that takes as long as the untouched model is held against that model."""
    study = synthetic_study(plan_of(["diversity"]), accuracy)
    names = [a.name for a in study.arms if a.name.endswith("by diversity")]
    study.seconds.update({name: list(study.seconds["untouched"]) for name in names})
    comparison = Comparison(study)
    assert comparison.is_timed
    for row in comparison.rows:
        if row.ranking.known_as() == "diversity":
            assert row.cost == pytest.approx(1)
            assert row.gain_at_cost.value == pytest.approx(row.lost.value)
            assert row.gain_at_cost.value < row.gain.value


def test_without_times_cost_is_operations():
    comparison = Comparison(synthetic_study(plan_of(["diversity"], timed=0), accuracy))
    assert not comparison.is_timed
    row = comparison.rows[0]
    assert row.cost == pytest.approx(comparison.study.summaries[-1].flops_share, abs=0.3)
    assert row.gain_at_cost.value == pytest.approx(row.gain.value)


def test_whether_the_picture_is_needed_is_said_of_test_samples():
    """Calibration samples are few where nothing is timed: here one, from which nothing follows."""

    def needed(arm, split):
        return float(split == "calibration") if arm.kind == "no image" else accuracy(arm, split)

    plan = plan_of(["diversity"], timed=0)
    assert "is not shown to need its picture" not in comparison_page(
        Comparison(synthetic_study(plan, needed))
    )
    everywhere = Comparison(synthetic_study(plan, lambda *_: 1.0))
    assert "is not shown to need its picture" in comparison_page(everywhere)


def test_samples_that_fail_under_one_arm_are_left_out_of_all():
    failed = {("test-3", "layer 2, keep 50 % by diversity"): "NaN", ("test-9", "*"): "broken"}
    study = synthetic_study(plan_of(["diversity"]), accuracy, failed=failed)
    comparison = Comparison(study)
    assert comparison.count == 98
    assert len({row["n"] for row in comparison.frame().to_dict("records")}) == 1
    assert "2 samples failed under some arm" in comparison_page(comparison)


def test_a_ranking_that_fails_on_every_sample_is_left_out_by_name():
    plan = plan_of(["diversity", "top_left"])
    failed = {
        (f"test-{number}", f"layer 2, keep {keep} % by top_left"): f"no places <b>{HOSTILE}"
        for number in range(100) for keep in (50, 25)
    }  # fmt: skip
    study = synthetic_study(plan, accuracy, failed=failed)
    for name, seconds in study.seconds.items():
        if name.endswith("by top_left"):  # what cannot answer is not timed either
            seconds[:] = [None] * len(seconds)
    comparison = Comparison(study)
    other = Comparison(synthetic_study(plan_of(["diversity"]), accuracy))
    assert comparison.count == 100
    assert comparison.is_timed
    assert [(r.ranking, r.gain, r.adjusted) for r in comparison.rows] == [
        (r.ranking, r.gain, r.adjusted) for r in other.rows
    ]
    page = comparison_page(comparison)
    words = "top_left failed on every sample and is left out, at keep 50 %: no places"
    assert words in page.replace("\N{NO-BREAK SPACE}", " ")
    assert latex("top_left failed on every sample") in latex_table(comparison)
    assert "top_left failed on every sample" in comparison._repr_html_()
    with pytest.raises(InputError, match=r"no ranking could be compared: top_left failed .* 50 %"):
        Comparison(synthetic_study(plan_of(["top_left"]), accuracy, failed=failed))
    # One that fails on some is compared, on the other samples.
    some = {("test-3", "layer 2, keep 50 % by top_left"): "no places"}
    assert Comparison(synthetic_study(plan, accuracy, failed=some)).left_out == {}


def test_pages_and_tables_hold_hostile_texts():
    study = synthetic_study(plan_of(["diversity"]), accuracy, text=HOSTILE)
    study.about["model"]["name"] = HOSTILE
    comparison = Comparison(study)
    page = comparison_page(comparison)
    assert "<script>" not in page
    assert "\u202e" not in page
    table = latex_table(comparison)
    assert "\u202e" not in table
    assert "<script>" not in table
    assert table.count(r"\\") == 3 + len(comparison.rankings)
    assert latex("50 % of a_b & {c} \\ $d$ #1 ~^") == (
        r"50 \% of a\_b \& \{c\} \textbackslash{} \$d\$ \#1 \textasciitilde{}\textasciicircum{}"
    )
    assert HOSTILE not in comparison._repr_html_()


def test_what_cannot_be_compared_is_refused():
    for keeps, words in [
        ((), "keep is empty"), ((0.5, 0.5), "twice"), ((0,), "keeps no token"),
        ((1.0,), "keeps every token"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            compared_truncations((Random(0),), 2, keeps)
    with pytest.raises(InputError, match="no ranking to compare"):
        compared_rankings(["random(seed=4)"], 0)
    study = synthetic_study(Plan(task="x", truncations=("layer=2,keep=0.5",)), lambda *_: 1.0)
    with pytest.raises(InputError, match="does not compare rankings"):
        Comparison(study)
    broken = synthetic_study(plan_of(["diversity"], samples=2), accuracy, failed={
        ("test-0", "*"): "x", ("test-1", "*"): "x",
    })  # fmt: skip
    with pytest.raises(InputError, match=r"no test sample of .*: x"):
        Comparison(broken)


@dataclass(frozen=True)
class Brightest(vlmflow.Ranking):
    """Keeps the tokens with the largest states."""

    def scores(self, seen):
        return seen.hidden[seen.image].float().norm(dim=-1)


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.LVLM(*tiny_llava(3, layers=3), name="tiny")


def test_a_ranking_of_a_notebook_goes_through_it(vlm, tmp_path):
    settings = {"task": Brightness(), "layer": 1, "keep": [4, 0.5], "samples": 4, "timed": 1}
    comparison = vlmflow.compare(vlm, [Brightest()], **settings, out=tmp_path / "kept")
    assert {ranking.known_as() for ranking in comparison.rankings} == {"brightest", "uniform"}
    # The scores are those of answers given one by one.
    task = Brightness()
    for row in comparison.rows:
        policy = vlmflow.Truncation(1, row.keep.plain, row.ranking)
        scores = [
            task.score(sample, vlm.generate(
                sample.pictures, sample.question, max_new_tokens=3, truncation=policy
            ))
            for sample in task.samples("test", 4)
        ]  # fmt: skip
        assert row.score.value == pytest.approx(np.mean(scores))
    files = {path.name for path in (tmp_path / "kept").iterdir()}
    assert {f"comparison.{kind}" for kind in ("html", "csv", "tex", "png", "pdf")} < files
    frame = pd.read_csv(tmp_path / "kept" / "comparison.csv")
    assert len(frame) == 2 * (len(comparison.rankings) + 1)

    again = vlmflow.compare(vlm, Brightest(), **settings)  # nothing is kept
    assert (
        again.frame()
        .drop(columns=["cost"])
        .iloc[:, :9]
        .equals(comparison.frame().drop(columns=["cost"]).iloc[:, :9])
    )


def test_the_command_takes_a_class_of_the_working_directory(tmp_path, monkeypatch, request):
    model, processor = tiny_llava(3, layers=3)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "my_rankings.py").write_text(
        "from dataclasses import dataclass\nimport vlmflow\n\n"
        "@dataclass(frozen=True)\nclass Foldered(vlmflow.Ranking):\n    '''Of a folder.'''\n"
        "    power: float = 1.0\n\n    def scores(self, seen):\n"
        "        return seen.hidden[seen.image].float().norm(dim=-1) ** self.power\n"
    )
    monkeypatch.chdir(tmp_path)
    request.addfinalizer(lambda: sys.modules.pop("my_rankings", None))
    before = list(sys.path)
    arguments = [
        *("compare", "--rank-by", "my_rankings:Foldered(power=2)", "--against", "diversity"),
        *("--task", "scenes-existence", "--layer", "1", "--keep", "0.5,4", "--samples", "2"),
        *("--timed", "0", "--model", "model", "--out", "out"),
    ]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "foldered(power=2)" in result.output
    assert sys.path == before
    table = (tmp_path / "out" / "comparison.tex").read_text()
    (tmp_path / "out" / "comparison.tex").unlink()
    shown = CliRunner().invoke(cli.app, ["report", "out"])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "out" / "comparison.tex").read_text() == table

    for name, words in [
        ("nowhere:Mine", "module 'nowhere' .* cannot be imported"),
        ("my_rankings:Yours", "has no subclass of vlmflow.Ranking called 'Yours'"),
        ("my rankings:Mine", "does not name a ranking"),
    ]:
        bad = CliRunner().invoke(cli.app, [*arguments[:2], name, *arguments[3:]])
        assert bad.exit_code == 2
        assert re.search(words, " ".join(bad.output.split()))
