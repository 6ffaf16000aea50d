"""The page of a study says what the study found, names its doubts, and runs nothing."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pytest

from tests.support.browser import OpenPage, running_browser
from tests.support.synthetic_study import HOSTILE, WordTask, synthetic_study
from vlmflow.reports.figures.label_places import Label, place_labels
from vlmflow.reports.study.curves import curves_of, study_curves
from vlmflow.reports.study.figure import pareto_front, study_figure
from vlmflow.reports.study.page import study_page
from vlmflow.reports.study.sentences import cautions, headline, second_line
from vlmflow.studies.truncations.plan import Plan
from vlmflow.studies.truncations.sentences import points, signed

SWEEP = {"layer": [3, 6, 9], "keep": [0, 0.25]}
SCORES = {
    "untouched": 0.9,
    "no image": 0.3,
    "layer 3, keep 0": 0.5,
    "layer 6, keep 0": 0.9,
    "layer 9, keep 0": 0.9,
    "layer 3, keep 25 % by last_attention": 0.7,
    "layer 6, keep 25 % by last_attention": 0.9,
    "layer 9, keep 25 % by last_attention": 0.9,
}


def plan(**given):
    sizes = {"samples": 200, "calibration": 300, "max_loss": 0.02}
    return Plan(**{"task": "t", "sweep": SWEEP, **sizes, **given})


def accuracy(arm, split):
    """Safe from layer 6 on; controls are bad."""
    return SCORES.get(arm.name, 0.4)


def fails_on_test(arm, split):
    return 0.8 if arm.name == "layer 6, keep 0" and split == "test" else accuracy(arm, split)


def never_safe(arm, split):
    return accuracy(arm, split) - 0.1 * (arm.kind != "untouched")


def best_at_random(arm, split):
    return 0.97 if arm.kind in ("random", "down-sampled") else accuracy(arm, split)


@pytest.fixture(scope="module")
def study():
    return synthetic_study(plan(), accuracy)


def words_of(page):
    """What a reader sees of a page, without its head and its pictures."""
    body = re.sub(r"base64,[^\"]*", "", page.partition("<body")[2] or page)
    return " ".join(re.sub(r"<[^>]*>", " ", body).replace("\u00a0", " ").split())


def row_of(page, name):
    """The first row of that name."""
    return words_of(
        re.search(rf"<tr[^>]*><th[^>]*>{re.escape(name)}(?![.\d]).*?</tr>", page, re.S)[0]
    )


@pytest.fixture(scope="module")
def page(study):
    return study_page(study)


def test_a_recommendation_that_holds(study):
    # Layer 6 of 12, keep 0: half of 70 % of the operations are gone.
    assert headline(study) == (
        "scenes-reasoning: layer 6, keep 0 saves 35 % of the prefill's operations; the score "
        "changes by 0.0 points (−1.4 to +1.4) on the test samples"
    )
    second = second_line(study)
    assert "6 truncations tried on 300 calibration samples" in second
    assert "the 200 test samples had no part in it" in second
    assert "at most 2 points" in second
    assert "accuracy there is 90.0 % (85.1 to 93.4)" in second
    assert "on 4 calibration samples" in second
    assert cautions(study) == []


def test_a_recommendation_that_does_not_hold_on_test():
    broken = synthetic_study(plan(), fails_on_test)
    assert headline(broken) == (
        "scenes-reasoning: no truncation is shown to be safe: layer 6, keep 0, chosen on the "
        "calibration samples, does not hold on the test samples, where the score changes by "
        "−10.0 points (−14.2 to −5.6)"
    )
    (doubt,) = [line for line in cautions(broken) if "Do not use it" in line]
    assert "changed the score by 0.0 points" in doubt
    page = study_page(broken)
    assert row_of(page, "layer 6, keep 0").startswith("layer 6, keep 0 ✕ chosen, does not hold")
    assert "recommended" not in words_of(page)
    labels = [line.get_label() for line in study_figure(broken).axes[0].lines]
    assert "chosen, does not hold" in labels


def test_what_is_unsafe_is_kept_apart_from_what_cannot_be_told():
    unsafe = synthetic_study(plan(max_loss=0.02), lambda arm, split: never_safe(arm, split))
    assert set(unsafe.choice.verdicts.values()) == {"not safe"}
    assert headline(unsafe) == (
        "scenes-reasoning: no truncation is safe: all 6 tried lose more than 2 points"
    )
    assert cautions(unsafe) == []
    page = study_page(unsafe)
    assert "★" not in page
    assert "came nearest to a recommendation" in page

    near = synthetic_study(plan(max_loss=0.1), never_safe)  # they lose 10 points of 10 allowed
    assert set(near.choice.verdicts.values()) == {"not safe", "cannot tell"}
    assert headline(near) == (
        "scenes-reasoning: no truncation is shown to be safe: with 95 % confidence none keeps the "
        "loss within 10 points; 2 of 6 lose more"
    )


def test_too_few_samples_are_named():
    """Without any loss 0.98 ** n is the chance of so few: 272 samples for the first of six."""
    few = synthetic_study(plan(calibration=271), accuracy)
    assert few.recommendation is None
    assert headline(few) == (
        "scenes-reasoning: cannot tell whether any truncation is safe: to show that one of 6 "
        "truncations loses at most 2 points takes at least 272 calibration samples, and there are "
        "271"
    )
    assert any("takes at least 272 calibration samples" in line for line in cautions(few))
    enough = synthetic_study(plan(samples=20, calibration=272), accuracy)
    assert enough.recommendation is not None
    (doubt,) = [line for line in cautions(enough) if "cannot show" in line]
    assert doubt == "20 test samples cannot show that little: it takes at least 183."
    assert "chosen, not shown to hold" in words_of(study_page(enough))
    assert "no number of samples shows" in headline(synthetic_study(plan(max_loss=0.0), accuracy))


@pytest.mark.parametrize(
    ("own", "blind", "sentence"),
    [
        (0.3, 0.28, "the untouched model's score, 30.0 %, is not shown to be higher than without"),
        (0.0, 0.0, "the untouched model scores 0, so that there is nothing to lose"),
        (0.9, 0.3, None),
    ],
)
def test_a_model_that_does_not_use_the_picture_is_named_first(own, blind, sentence):
    scores = {"untouched": own, "no image": blind}
    said = headline(synthetic_study(plan(), lambda arm, split: scores.get(arm.name, own)))
    if sentence is None:
        assert "untouched model" not in said
    else:
        assert said.startswith(f"scenes-reasoning: {sentence}")


def test_controls_that_are_not_beaten_are_named(study, page):
    assert "✓ beats random choice: " in row_of(page, "layer 6, keep 25 % by last_attention")
    assert "✓ beats down-sampled picture: " in row_of(page, "layer 6, keep 0")
    equal = synthetic_study(plan(), best_at_random)
    (doubt,) = cautions(equal)
    assert "layer 6, keep 0 is not shown to score higher than down-sampled picture" in doubt
    row = row_of(study_page(equal), "layer 3, keep 25 % by last_attention")
    assert "✕ is beaten by random choice: −2" in row
    assert "✕ is beaten by down-sampled picture: −2" in row


def test_shared_controls_count_for_every_truncation():
    """Two rankings at one layer have one random choice and one down-sampled picture."""
    sweep = {"layer": [6], "keep": [0.25], "rank_by": ["last_attention", "diversity"]}
    shared = synthetic_study(plan(sweep=sweep, samples=5, calibration=5), accuracy)
    first, second = (arm for arm in shared.arms if arm.kind == "truncation")
    assert [arm.of for arm in shared.controls(second)] == [first.name, first.name]
    assert shared.controls(first) == shared.controls(second)
    # One token and all tokens are equal as numbers, and nothing else.
    both = ("layer=6,keep=1", "layer=6,keep=1.0")
    apart = synthetic_study(plan(sweep=None, truncations=both, samples=5, calibration=5), accuracy)
    one_token, everything = (arm for arm in apart.arms if arm.kind == "truncation")
    assert not {x.name for x in apart.controls(one_token)} & {
        x.name for x in apart.controls(everything)
    }


def test_against_is_paired_over_common_samples(study):
    by_name = {arm.name: arm for arm in study.arms}
    good, bad = by_name["layer 6, keep 0"], by_name["layer 3, keep 0"]
    # Samples are right in the same order under both: all differences have one sign.
    difference = study.against(good, bad, "test")
    assert difference.value == pytest.approx(0.4)
    failed = {(f"test-{i}", "layer 3, keep 0"): "broken" for i in range(200)}
    assert synthetic_study(plan(), accuracy, failed=failed).against(good, bad, "test") is None


def test_failures_are_counted_and_explained():
    failed = {
        ("test-3", "*"): "OSError: no picture",
        ("test-4", "layer 6, keep 0"): "out of memory",
        ("calibration-0", "layer 6, keep 0"): "out of memory",
    }
    result = synthetic_study(plan(), accuracy, failed=failed)
    page = study_page(result)
    text = words_of(page)
    assert "3 of 500 samples failed under some arm" in text
    assert "layer 6, keep 0 1 2" in text
    assert "untouched 0 1" in text
    assert f"test-3 test all {len(result.arms)} OSError: no picture" in text
    assert "left out of that arm's figures" in text
    assert row_of(page, "layer 6, keep 0").endswith("198 2")


def test_an_arm_without_any_answer_keeps_its_row():
    failed = {(f"test-{i}", "layer 3, keep 0"): "broken" for i in range(200)}
    page = study_page(synthetic_study(plan(), accuracy, failed=failed))
    assert row_of(page, "layer 3, keep 0").endswith("– – – – – – – – 0 200")


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_a_split_without_any_answer_is_said(split):
    failed = {(f"{split}-{i}", "*"): "broken" for i in range(300)}
    empty = synthetic_study(plan(), accuracy, failed=failed)
    assert headline(empty).endswith(f"no {split} sample was answered")
    assert "all" in words_of(study_page(empty))


def test_nothing_timed_leaves_one_picture():
    untimed = synthetic_study(plan(timed=0), accuracy)
    figure = study_figure(untimed)
    assert len(figure.axes) == 1
    assert any("not timed" in text.get_text() for text in figure.texts)
    text = words_of(study_page(untimed))
    assert "Prefills were not timed" in text
    assert re.search(r"\b(nan|None|inf)\b", text) is None


def test_every_figure_of_the_task_is_shown():
    """Sums are shown as they are, shares as percent; a lone score is not shown twice."""
    summed = study_page(synthetic_study(plan(), accuracy, task=WordTask(points=True)))
    assert '<th scope="col">chair &lt;b&gt;</th>' in summed
    assert "untouched 90.0 % 360.00 10.0 %" in words_of(summed)
    assert "own figures" not in words_of(study_page(synthetic_study(plan(), accuracy)))


def test_the_pareto_picture_shows_every_arm(study):
    figure = study_figure(study)
    lines = [line for line in study.summaries if line.split == "test"]
    for axes, cost in zip(figure.axes, ("cost_share", "prefill_share"), strict=True):
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        for kind, label in {
            "truncation": "truncation",
            "random": "random choice",
            "down-sampled": "down-sampled picture",
            "no image": "no image",
        }.items():
            expected = [
                (getattr(line, cost), line.score.value) for line in lines if line.arm.kind == kind
            ]
            np.testing.assert_allclose(drawn[label], expected)
        chosen = study.recommendation.test
        expected = [(getattr(chosen, cost), chosen.score.value)]
        np.testing.assert_allclose(drawn["recommended"], expected)
    front = [line.arm.name for line in pareto_front(lines, "cost_share")]
    assert front == ["layer 3, keep 0", "layer 3, keep 25 % by last_attention", "layer 6, keep 0"]
    xs, ys = zip(*drawn["Pareto front of the truncations"], strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)


def test_oracles_are_not_part_of_the_front():
    oracle = synthetic_study(
        plan(truncations=("layer=2,keep=0.1,rank_by=saliency",)),
        lambda arm, split: 0.95 if "saliency" in arm.name else accuracy(arm, split),
    )
    lines = [line for line in oracle.summaries if line.split == "test"]
    assert all("saliency" not in line.arm.name for line in pareto_front(lines, "cost_share"))
    assert "never recommended" in row_of(study_page(oracle), "layer 2, keep 10 % by saliency")


def test_curves_hold_truncations_that_differ_in_their_layer_only(study):
    ((title, curves),) = curves_of(study).items()
    assert title == "kept by last_attention"
    assert {name: [line.score.value for line in lines] for name, lines in curves.items()} == {
        "keep 0": [0.5, 0.9, 0.9],
        "keep 25 %": [0.7, 0.9, 0.9],
    }
    (axes,) = study_curves(study).axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_allclose(drawn["keep 0"], [(3, 0.5), (6, 0.9), (9, 0.9)])
    single = plan(sweep=None, truncations=("layer=6,keep=0", "layer=3:6,keep=0.5:0.25"))
    assert not curves_of(synthetic_study(single, accuracy))


def test_labels_cover_no_mark_and_each_other():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    places = np.random.default_rng(0).uniform(0.1, 0.9, (12, 2))
    labels = [Label(x, y, f"arm {i}", bold=i == 0) for i, (x, y) in enumerate(places)]
    place_labels(axes, labels, places, np.zeros((0, 2)))
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) >= 6
    marks = axes.transData.transform(places)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.contains(*mark) for mark in marks)
        assert axes.get_window_extent().padded(1).containsx(box.x0)
    # Where there is no room at all, only the bold one is written.
    crowd = np.stack(np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 60)), -1).reshape(-1, 2)
    before = len(axes.texts)
    place_labels(axes, labels[:3], crowd, np.zeros((0, 2)))
    assert {text.get_text() for text in axes.texts[before:]} - {""} == {"arm 0"}


@pytest.mark.parametrize(
    ("share", "text"), [(-0.005, "−0.5"), (0.019, "+1.9"), (0, "0.0"), (-0.0001, "0.0")]
)
def test_signs(share, text):
    assert signed(share) == text


def test_points():
    assert [points(share) for share in (0.01, 0.02, 0.07, 0.005)] == [
        "1 point", "2 points", "7 points", "0.5 points"
    ]  # fmt: skip


def test_the_page_opens_and_runs_nothing(study, page, tmp_path):
    path = tmp_path / "study.html"
    path.write_text(page, "utf-8")
    assert re.search(r"\b(nan|None|inf)\b", words_of(page)) is None
    with running_browser() as browser:
        opened = OpenPage(browser, path)
        seen = opened.page
        assert seen.inner_text("h1").replace("\u00a0", " ") == headline(study)
        (chosen,) = seen.locator("section tr.chosen:visible").all_inner_texts()
        assert chosen.startswith("layer 6, keep 0 ★ recommended")
        assert seen.locator("figure svg:visible").count() == 2
        assert seen.locator("figure .wide svg").first.is_visible()
        dark = OpenPage(browser, path, color_scheme="dark")
        ink = "getComputedStyle(document.querySelector('figure svg')).fill"
        assert seen.evaluate(ink) != dark.page.evaluate(ink)
        assert opened.complaints == []
        assert opened.outside_requests() == []
        phone = OpenPage(browser, path, viewport={"width": 360, "height": 740})
        assert phone.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert phone.page.locator("figure .narrow svg").first.is_visible()
        assert phone.page.locator("figure .wide svg").first.is_hidden()
        # Arms stand as cards: every figure beside its name, nothing to scroll sideways for.
        table = phone.page.locator("table.arms").first
        assert table.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")
        assert table.locator("td[data-name=operations]").first.is_visible()
        # Whatever scrolls sideways can be reached with the keyboard.
        for box in phone.page.locator("section > .scroll").all():
            assert box.get_attribute("tabindex") == "0"
            assert box.get_attribute("aria-label")


def test_hostile_texts_stay_texts(tmp_path):
    """Task, model, arms, questions, answers and reasons come from elsewhere."""
    named = tuple({"layer": 5 + i, "keep": 0, "name": f"{i} {HOSTILE}"} for i in range(2))
    hostile = synthetic_study(
        plan(truncations=named, samples=60, calibration=30),
        accuracy,
        task=WordTask(HOSTILE, points=True),
        failed={(f"test-{i}", "*"): HOSTILE for i in range(1, 4)},
        text=HOSTILE * 20,
    )
    page = study_page(hostile)
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert len(page.encode()) < 3_000_000
    path = tmp_path / "hostile.html"
    path.write_text(page, "utf-8")
    with running_browser() as browser:
        opened = OpenPage(browser, path, viewport={"width": 360, "height": 740})
        assert opened.page.evaluate("window.ranPayload") == 0
        assert opened.page.locator("script, img[onerror]").count() == 0
        assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert opened.complaints == []
        assert opened.outside_requests() == []


def test_a_study_shows_itself_in_a_notebook(study):
    html = study._repr_html_()
    text = unescape(words_of(html))
    assert headline(study) in text
    for summary in study.summaries:
        assert summary.arm.name in text
    chosen = study.recommendation.test.arm.name
    assert re.search(re.escape(chosen) + r"\s*\(recommended\)", text)
    hostile = synthetic_study(plan(), accuracy, task=WordTask(HOSTILE), text=HOSTILE)
    fragment = hostile._repr_html_()
    assert "<script" not in fragment
    assert "<img" not in fragment
    assert "⟦U+202E⟧" in fragment
