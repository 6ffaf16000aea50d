"""Runs of lmms-eval read back: what they say, and what is refused, each in one sentence."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support.lmms_logs import COUNT, logged
from tests.support.synthetic_study import HOSTILE
from vlmflow import cli
from vlmflow.errors import InputError
from vlmflow.reports.imported.sentences import cautions
from vlmflow.statistics.intervals import paired_difference
from vlmflow.statistics.loss_tests import holm, loss_p_value
from vlmflow.statistics.paired_tests import holm_adjusted, sign_flip_p_value
from vlmflow.studies.imported.store import read_imported, store_runs


def imported(runs, out, **settings):
    """Import as :func:`vlmflow.import_runs` does, without page and figure."""
    store_runs(list(runs.items()), out, **settings)
    return read_imported(out)


@pytest.fixture
def runs(tmp_path):
    """Untouched, a truncation with its control, a destructive one, and no image."""
    arguments = {
        "own": ("", 190),
        "half": ("layer=4,keep=0.5,rank_by=nobody:Knows", 189),
        "drawn": ("layer=4,keep=0.5,rank_by=random,seed=3", 180),
        "bad": ("preset=vtw", 100),
        "blind": ("layer=0,keep=0,batch_size=4", 20),
    }
    return {
        name: logged(tmp_path / name, f"pretrained=tiny,{text}".rstrip(","), right=right)
        for name, (text, right) in arguments.items()
    }


def vector(right):
    return [float(number < right) for number in range(COUNT)]


def test_differences_intervals_and_corrections_are_the_packages_own(runs, tmp_path):
    study = imported(runs, tmp_path / "out", max_loss=0.05, seed=7)
    rows = {row.arm.name: row for row in study.rows}
    assert [row.arm.kind for row in study.rows] == [
        *("untouched", "truncation", "random", "truncation", "no image"),
    ]
    assert rows["own"].difference is None
    own = vector(190)
    scores = {"half": 189, "drawn": 180, "bad": 100, "blind": 20}
    gains = [[a - b for a, b in zip(vector(right), own, strict=True)] for right in scores.values()]
    adjusted = holm_adjusted([sign_flip_p_value(gain, seed=7) for gain in gains])
    for (name, right), p_value in zip(scores.items(), adjusted, strict=True):
        assert rows[name].difference == paired_difference(vector(right), own)
        assert rows[name].adjusted == p_value
        assert rows[name].score.value == right / COUNT
        assert rows[name].agreement.value == pytest.approx(1 - (190 - right) / COUNT)
    tried = [loss_p_value(vector(right), own, 0.05) for right in (189, 100)]
    assert holm(tried) == [True, False]
    verdicts = ["", "safe", "", "not safe", ""]
    assert [row.verdict for row in study.rows] == verdicts
    (against,) = rows["half"].against
    assert against == ("drawn", paired_difference(vector(189), vector(180)))
    assert rows["bad"].against == ()


def test_what_is_kept_is_all_that_a_page_needs(runs, tmp_path):
    study = vlmflow.import_runs(runs, out=tmp_path / "out")
    for folder in runs.values():
        for file in folder.rglob("*.json*"):
            file.unlink()
    again = read_imported(tmp_path / "out")
    assert again.rows == study.rows
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path / "out")])
    assert done.exit_code == 0
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert list(table["run"]) == list(runs)
    assert len(pd.read_csv(tmp_path / "out" / "samples.csv")) == 5 * COUNT
    assert "<script" not in (tmp_path / "out" / "imported.html").read_text("utf-8")


def test_runs_are_told_by_their_arguments_alone(runs, tmp_path):
    """A path without a name gets one, and a module that a log names is never imported."""
    words = [word for folder in runs.values() for word in ("--import", str(folder))]
    done = CliRunner().invoke(cli.app, ["study", *words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    study = read_imported(tmp_path / "out")
    names = [arm.name for arm in study.arms]
    assert names[0] == "untouched"
    assert "layer=4,keep=0.5,rank_by=nobody:Knows" in names
    assert f"{names[-1]}  " in done.stdout
    assert "+4.5" in done.stdout  # half over its control


def test_samples_about_one_picture_stand_together(tmp_path):
    alone = {
        name: logged(tmp_path / name, text, right=right)
        for name, text, right in (("untouched", "", 200), ("a", "pretrained=tiny,preset=vtw", 150))
    }
    shared = {
        name: logged(tmp_path / f"shared-{name}", text, right=right, pictures=10)
        for name, text, right in (("untouched", "", 200), ("a", "pretrained=tiny,preset=vtw", 150))
    }
    narrow, wide = (
        imported(given, tmp_path / f"out{number}") for number, given in enumerate((alone, shared))
    )
    widths = [study.rows[1].difference.high - study.rows[1].difference.low
              for study in (narrow, wide)]  # fmt: skip
    assert widths[1] > 1.5 * widths[0]
    assert any("share a picture" in line for line in cautions(narrow))
    assert not any("share a picture" in line for line in cautions(wide))


def test_missing_controls_and_few_samples_are_said(tmp_path):
    given = {
        "untouched": logged(tmp_path / "a", count=40, right=40),
        "half": logged(tmp_path / "b", "pretrained=tiny,layer=2,keep=9", count=40, right=40),
    }
    lines = " ".join(cautions(imported(given, tmp_path / "out")))
    assert "no run without the picture" in lines
    assert "No run of as many random tokens stands beside half" in lines
    assert "takes at least 122 samples, and there are 40" in lines
    blind = logged(tmp_path / "c", "pretrained=tiny,layer=0,keep=0", count=40, right=40)
    given |= {"blind": blind}
    lines = " ".join(cautions(imported(given, tmp_path / "out")))
    assert "is not shown to be higher than without the picture" in lines


def test_runs_of_another_model_are_told_by_their_names(tmp_path):
    names = ("untouched", "no image", "mine", "random:mine")
    given = {
        name: logged(tmp_path / str(number), "x=1", model="llava_hf", right=200 - number)
        for number, name in enumerate(names)
    }
    study = imported(given, tmp_path / "out")
    kinds = {arm.name: arm.kind for arm in study.arms}
    assert kinds == dict(zip(names, ("untouched", "no image", "truncation", "random"), strict=True))
    (row,) = (row for row in study.rows if row.arm.name == "mine")
    assert [name for name, _ in row.against] == ["random:mine"]
    with pytest.raises(InputError, match=r"not one of --model vlmflow.*name it"):
        imported({"": given["mine"], "untouched": given["untouched"]}, tmp_path / "o")


def test_several_tasks_are_corrected_together(tmp_path):
    for task, right in (("seeing", 150), ("reading", 120)):
        own = logged(tmp_path / "own", task=task, right=160)
        cut = logged(tmp_path / "cut", "pretrained=tiny,preset=vtw", task=task, right=right)
    study = imported({"untouched": own, "cut": cut}, tmp_path / "out")
    compared = [row for row in study.rows if row.p_value is not None]
    assert [row.adjusted for row in compared] == holm_adjusted([row.p_value for row in compared])
    assert len(compared) == 2
    (one,) = (
        row
        for row in imported({"untouched": own, "cut": cut}, tmp_path / "one", task="reading").rows
        if row.p_value is not None
    )
    assert (one.task, one.adjusted) == ("reading", one.p_value)


def test_hostile_texts_stay_texts(tmp_path):
    given = {
        "untouched": logged(tmp_path / "a", question=HOSTILE, right=3, count=5),
        HOSTILE: logged(tmp_path / "b", f"pretrained=tiny,preset={HOSTILE}", question=HOSTILE,
                        right=1, count=5, wrong=HOSTILE),
    }  # fmt: skip
    study = vlmflow.import_runs(given, out=tmp_path / "out")
    page = (tmp_path / "out" / "imported.html").read_text("utf-8")
    for text in (page, study._repr_html_()):
        assert "<script" not in text
        assert "\u202e" not in text
        assert "&lt;script&gt;" in text


def changed(folder, change):
    """Change every line of a log."""
    (file,) = folder.rglob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines:
        change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


CUT = "pretrained=tiny,preset=vtw"
OTHER_RUNS = {
    "another task": (lambda f: logged(f, CUT, task="b"), "about b and 'untouched' about seeing"),
    "fewer samples": (lambda f: logged(f, CUT, count=198), r"lacks 2 of the 200 .*\(198, 199\)"),
    "more samples": (
        lambda f: logged(f, CUT, count=205),
        r"'untouched' lacks 5 of the 205 .*\(200, 201, 202, ...\)",
    ),
    "other questions": (
        lambda f: logged(f, CUT, question="Was it"),
        "document 0 of seeing has another question",
    ),
    "other targets": (
        lambda f: changed(logged(f, CUT), lambda line: line.update(target="no")),
        "another target",
    ),
    "no doc_id": (
        lambda f: changed(logged(f, CUT), lambda line: line.pop("doc_id")),
        "line 1 of .* has no doc_id",
    ),
    "a doc_id twice": (
        lambda f: changed(logged(f, CUT), lambda line: line.update(doc_id=3)),
        "document 3 twice",
    ),
    "another model": (lambda f: logged(f, "pretrained=other,preset=vtw"), "differ in pretrained"),
    "longer answers": (lambda f: logged(f, CUT, longest=9), "run them alike"),
    "nothing removed": (lambda f: logged(f), "'untouched', 'cut' are untouched"),
    "scores beyond 1": (
        lambda f: changed(
            logged(f, CUT), lambda line: line.update(accuracy=80.0, graded={"score": 2})
        ),
        "no metric that scores every sample from 0 to 1",
    ),
    "no scores": (
        lambda f: changed(logged(f, CUT), lambda line: line.update(accuracy=math.nan, graded=None)),
        "no metric that scores every sample",
    ),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_runs_that_do_not_belong_together_are_refused(name, tmp_path):
    make, named = OTHER_RUNS[name]
    given = {"untouched": logged(tmp_path / "own"), "cut": make(tmp_path / "cut")}
    with pytest.raises(InputError, match=named) as refusal:
        imported(given, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_metrics_are_chosen_or_named(tmp_path):
    given = {"untouched": logged(tmp_path / "a"), "cut": logged(tmp_path / "b", CUT)}
    chosen = imported(given, tmp_path / "out", metric="graded")
    assert chosen.metrics == {"seeing": "graded"}
    with pytest.raises(InputError, match=r"no metric 'words'.*choose one of accuracy, graded"):
        imported(given, tmp_path / "out", metric="words")
    given = {
        name: logged(tmp_path / name, text, higher=False)
        for name, text in (("untouched", ""), ("cut", CUT))
    }
    assert imported(given, tmp_path / "out").metrics == {"seeing": "graded"}
    with pytest.raises(InputError, match="of metric 'accuracy' of seeing less is better"):
        imported(given, tmp_path / "out", metric="accuracy")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--import", "untouched=@own", "--import", "cut=@cut", "--samples", "3"], "--samples"),
        (["--import", "untouched=@own", "--import", "cut=@cut", "--plan"], "--plan"),
        (["--import", "untouched=@own", "--import", "cut=@cut", "--task", "b"], "task 'b'"),
        (["--import", "untouched=@own", "--import", "cut=@cut", "--metric", "b"], "metric 'b'"),
        (["--import", "untouched=@own", "--import", "cut=@cut", "--max-loss", "nan"], "max_loss"),
        (["--import", "untouched=@own"], "nothing to compare"),
        (["--import", "cut=@cut"], "none of the runs is untouched"),
        (["--import", "untouched=@cut", "--import", "cut=@own"], "which is something else"),
        (["--import", "a=@cut", "--import", "a=@own"], "two runs are called 'a'"),
        (["--import", "random:b=@cut", "--import", "a=@own"], "no run is called so"),
        (["--import", "=@cut"], "no name before '='"),
        (["--import", "@missing"], "does not exist"),
        (["--import", "@"], "holds 'seeing' of several runs"),
        (["--metric", "accuracy", "--task", "scenes-reading"], "--metric is for runs"),
    ],
)
def test_bad_imports_end_in_one_line(words, named, tmp_path):
    logged(tmp_path / "own")
    logged(tmp_path / "cut", CUT)
    line = [word.replace("@", f"{tmp_path}/") for word in words]
    done = CliRunner().invoke(cli.app, ["study", *line, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", ["{", "[1]\n", "", "\ud800", "[" * 9000, '{"doc_id": true}\n', "3\n"]
)
def test_damaged_logs_are_refused(content, tmp_path):
    own, cut = logged(tmp_path / "own"), logged(tmp_path / "cut", CUT)
    (file,) = cut.rglob("*.jsonl")
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="cut") as refusal:
        imported({"untouched": own, "cut": cut}, tmp_path / "out")
    assert "\n" not in str(refusal.value)
