"""A table run again on a small model of random weights, with data in the hub's form: all but the
numbers is real."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import which

import pandas as pd
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support import hub_data, synthetic_study
from tests.support.tiny import tiny_llava
from tests.support.tiny_video import named
from vlmflow import cli
from vlmflow.errors import InputError
from vlmflow.reports.reproduction.page import reproduction_page
from vlmflow.reproductions.estimate import estimate
from vlmflow.reproductions.official_split import OfficialSplit
from vlmflow.reproductions.published import PublishedData
from vlmflow.reproductions.reproduction import Reproduction
from vlmflow.reproductions.request import Request
from vlmflow.reproductions.run import read_reproduction, run_reproduction
from vlmflow.reproductions.verdicts import OUTSIDE, UNKNOWN, WITHIN
from vlmflow.studies.truncations.plan import Plan
from vlmflow.tasks.hub.task import HubTask
from vlmflow.tasks.metrics.pope import official_yes_or_no
from vlmflow.tasks.registry import find_task

datasets = pytest.importorskip("datasets", reason="data sets of the hub are read by datasets")
needs_java = pytest.mark.skipif(which("java") is None, reason="Java is not installed")

LLAVA = "llava-hf/llava-1.5-7b-hf"
DATA = ("scienceqa", "pope")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Leave the user's cache of data sets alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Copies of two data sets, and a model as deep as the table's."""
    folder = tmp_path_factory.mktemp("files")
    for name in DATA:
        hub_data.write(name, folder / name)
    for part in tiny_llava(layers=32):
        part.save_pretrained(folder / "model")
    for part in tiny_llava(layers=4):
        part.save_pretrained(folder / "shallow")
    return folder


def command(root, *more, model="model", table="paper-table-1"):
    words = ["reproduce", table, "--model", str(root / model), "--as", LLAVA, *more]
    return CliRunner().invoke(cli.app, words)


def sources(root):
    return [word for name in DATA for word in ("--data", f"{name}={root / name}")]


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """What the command wrote and printed."""
    out = tmp_path_factory.mktemp("run") / "out"
    result = command(
        root, "--out", str(out), "--samples", "4", "--only", ",".join(DATA), *sources(root)
    )
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_measured_figures_are_those_of_real_answers(run, root):
    """Answered again, one by one, by the truncated model itself."""
    out, _ = run
    frame = pd.read_csv(out / "reproduction.csv")
    vlm = vlmflow.load(root / "model")
    task = find_task(f"pope@{root / 'pope'}")
    samples = list(task.samples("test", 4))
    for truncation, arm in (
        (None, "untouched"), (vlmflow.Truncation(22, 0), "layer 22, keep 0"),
    ):  # fmt: skip
        said = [
            vlm.generate(one.pictures[0], one.question, max_new_tokens=16, truncation=truncation)
            for one in samples
        ]
        right = [
            official_yes_or_no(str(answer)) == one.references[0]
            for answer, one in zip(said, samples, strict=True)
        ]
        own = frame[(frame["figure"] == "POPE accuracy") & (frame["arm"] == arm)
                    & (frame["model"] == "LLaVA1.5")].iloc[0]  # fmt: skip
        assert own["measured"] == pytest.approx(100 * sum(right) / 4)
        assert own["n"] == 4
        assert own["difference"] == pytest.approx(own["measured"] - own["published"])


def test_every_printed_figure_has_a_row(run):
    out, _ = run
    frame = pd.read_csv(out / "reproduction.csv")
    assert len(frame) == 49
    ran = frame[frame["measured"].notna()]
    assert set(ran["model"]) == {"LLaVA1.5"}
    assert set(ran["data"]) == set(DATA)
    assert len(ran) == 7
    assert set(ran["verdict"]) == {UNKNOWN}  # of four samples
    rest = frame[frame["measured"].isna()]
    assert rest["not run"].notna().all()
    reasons = dict(zip(rest["model"] + " " + rest["data"], rest["not run"], strict=True))
    assert "code of its own" in reasons["Qwen-VL pope"]
    assert "--only" in reasons["LLaVA1.5 textvqa"]


def test_the_command_says_what_differs_and_what_is_in_doubt(run):
    out, printed = run
    assert "7 of 49 printed figures measured" in printed
    assert "pope, POPE F1, layer 22, keep 0" in printed
    assert "+0.49" in printed  # the printed change
    assert "differs in protocol:" in printed
    assert "chosen on the data it is reported on" in printed
    assert "was run as llava-hf/llava-1.5-7b-hf; whether it is that model is not checked" in printed
    assert "Of scienceqa, pope only some samples were asked" in printed
    assert f"written to {out / 'reproduction.html'}" in printed


def test_a_finished_run_is_not_run_again_and_can_be_read(run, root):
    out, _ = run
    request = read_reproduction(out).request
    steps = []
    again = run_reproduction(request, vlmflow.load(root / "model"), out, steps.append)
    assert len(steps) == 2 * 5
    assert {step.seconds_left for step in steps} == {None}
    before = json.loads((out / "reproduction.json").read_text("utf-8"))
    assert json.loads(json.dumps(again.to_json()))["rows"] == before["rows"]


def test_report_writes_the_page_again_without_the_data(run, tmp_path, monkeypatch):
    out, printed = run
    monkeypatch.setattr(HubTask, "samples", None)
    result = CliRunner().invoke(cli.app, ["report", str(out), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "reproduction.html").read_text("utf-8") == (
        out / "reproduction.html"
    ).read_text("utf-8")
    assert result.stdout.splitlines()[0] == printed.splitlines()[0]
    # A data set's own study is a study.
    one = CliRunner().invoke(cli.app, ["report", str(out / "pope"), "--out", str(tmp_path)])
    assert one.exit_code == 0, one.output


def test_a_run_that_ended_early_goes_on(root, tmp_path, monkeypatch):
    request = Request(
        "paper-table-1", str(root / "model"), LLAVA, 4, ("scienceqa",),
        (("scienceqa", str(root / "scienceqa")),),
    )  # fmt: skip
    vlm = vlmflow.load(root / "model")
    steps = []

    def interrupt(step):
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_reproduction(request, vlm, tmp_path, interrupt)
    rest = []
    result = run_reproduction(request, vlm, tmp_path, rest.append)
    assert [step.done for step in rest] == [1, 2, 3, 4, 5]
    assert sum(step.seconds_left is not None for step in rest) == 2  # the two that were missing
    assert len(result.compared) == 3
    # The rate of the first part is what --plan goes by.
    planned = command(root, "--plan", "--samples", "4", "--only", "scienceqa", "--out",
                      str(tmp_path))  # fmt: skip
    assert planned.exit_code == 0, planned.output
    assert "by the samples that were measured in this directory" in planned.stdout
    assert "not measured" not in planned.stdout.replace("tokens, not measured", "")


def test_rankings_and_sums_over_categories_are_run(root, tmp_path):
    """FastV's figures: half of the tokens stay, and MME is a sum over categories."""
    places = [("gqa", tmp_path / "gqa"), ("mme", tmp_path / "mme")]
    for name, folder in places:
        hub_data.write(name, folder)
    copies = [word for name, folder in places for word in ("--data", f"{name}={folder}")]
    out = tmp_path / "out"
    result = command(
        root, "--out", str(out), "--samples", "4", "--only", "gqa,mme", *copies,
        table="fastv-lmms-eval",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "mme, MME perception, layer 3, keep 50 % by last_attention" in result.stdout
    assert "1510.8" in result.stdout  # as printed
    study = read_reproduction(out).studies["mme"]
    (arm,) = [arm for arm in study.arms if arm.kind == "truncation"]
    sample = study.samples["test"][0]
    tokens = study.answers[sample.id, "untouched"].image_tokens
    left = study.answers[sample.id, arm.name].image_tokens
    assert left == pytest.approx((3 + 29 * 0.5) / 32 * tokens)


def test_what_does_not_fit_is_refused_before_anything_is_written(root, tmp_path):
    out = tmp_path / "out"
    few = ("--out", str(out), "--samples", "2", "--only", "pope", *sources(root)[2:])
    shallow = command(root, *few, model="shallow")
    assert shallow.exit_code == 2
    assert "layer=22" in shallow.stderr
    assert "4 decoder layers" in shallow.stderr
    other = CliRunner().invoke(
        cli.app,
        ["reproduce", "paper-table-1", "--model", str(root / "model"), "--as",
         "Salesforce/instructblip-vicuna-7b", *few],
    )  # fmt: skip
    assert other.exit_code == 2
    assert "is of type 'llava', but Salesforce/instructblip-vicuna-7b is" in other.stderr
    assert not out.exists()
    (tmp_path / "file").write_text("x")
    blocked = command(root, *few, "--out", str(tmp_path / "file"))
    assert blocked.exit_code == 2
    assert len(blocked.stderr.splitlines()) == 1
    lost = command(root, *few, "--data", f"scienceqa={tmp_path / 'gone'}", "--only", "scienceqa")
    assert lost.exit_code == 2
    assert "gone" in lost.stderr
    assert not out.exists()


def test_a_damaged_record_is_said_in_one_sentence(tmp_path):
    for text in ("", "{}", "[1]", '{"request": 3}', '{"request": {"table": "x"}}'):
        (tmp_path / "reproduction.json").write_text(text)
        with pytest.raises(InputError, match=r"reproduction\.json"):
            read_reproduction(tmp_path)


def test_the_official_split_is_whole(root):
    task = find_task(f"pope@{root / 'pope'}")
    data = PublishedData("pope", samples=72, question="Yes?", max_new_tokens=5)
    whole = OfficialSplit(task, data)
    keys = [one.key for one in whole.samples("test")]
    assert len(set(keys)) == len(keys) == 72
    assert keys[:5] == [one.key for one in task.samples("test", 5)]
    assert [one.key for one in whole.samples("test", 70)] == keys[:70]
    assert [one.key for one in whole.samples("calibration", 9)] == keys[:1]
    assert {one.question for one in whole.samples("test", 3)} == {"Yes?"}
    assert whole.max_new_tokens == 5
    # ScienceQA has a validation split of its own: that is no part of the official test split.
    science = OfficialSplit(
        find_task(f"scienceqa@{root / 'scienceqa'}"), PublishedData("scienceqa")
    )
    assert len(list(science.samples("test"))) == hub_data.PICTURES


def synthetic(monkeypatch, accuracies, *, samples=2017, model="copy", text=""):
    """A study of ScienceQA with known scores."""
    monkeypatch.setattr(synthetic_study, "LAYERS", 32)
    request = Request("paper-table-1", model, LLAVA, samples, ("scienceqa",))
    plan = Plan(
        task="scienceqa", truncations=request.policies(request.data[0]), samples=samples,
        calibration=1, timed=0, controls=(),
    )  # fmt: skip
    study = synthetic_study.synthetic_study(
        plan, lambda arm, _split: accuracies[arm.name], text=text
    )
    study.about["model"]["layers"] = 32
    return Reproduction(request, {"scienceqa": study})


def test_verdicts_on_known_scores(monkeypatch):
    accuracies = {"untouched": 0.65, "layer 12, keep 0": 0.663, "no image": 0.30}
    result = synthetic(monkeypatch, accuracies)
    rows = {row.arm: row for row in result.compared}
    assert rows["untouched"].verdict == WITHIN
    assert rows["layer 12, keep 0"].verdict == WITHIN
    assert rows["layer 0, keep 0"].verdict == OUTSIDE
    assert rows["layer 12, keep 0"].measured.change.value == pytest.approx(1.3, abs=0.1)
    assert rows["layer 12, keep 0"].change_verdict == WITHIN  # +1.48 was printed
    assert rows["layer 0, keep 0"].change_verdict == OUTSIDE  # -17.5 was
    assert result.verdicts() == {WITHIN: 2, OUTSIDE: 1, UNKNOWN: 0}
    page = reproduction_page(result)
    assert "2 of them within the measured interval, 1 outside it" in page
    assert "asked whole" in page
    assert 'class="text outside"' in page


def test_the_page_holds_hostile_names(monkeypatch):
    accuracies = {"untouched": 0.65, "layer 12, keep 0": 0.66, "no image": 0.30}
    hostile = synthetic_study.HOSTILE
    page = reproduction_page(
        synthetic(monkeypatch, accuracies, samples=20, model=hostile, text=hostile)
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_documentation_shows_what_the_plan_prints(tmp_path, monkeypatch):
    from transformers import LlavaConfig

    from vlmflow.lvlm import skeleton

    LlavaConfig().save_pretrained(tmp_path)
    opened = skeleton.open_skeleton
    monkeypatch.setattr(
        skeleton, "open_skeleton", lambda _name, revision: opened(str(tmp_path), revision=revision)
    )
    line = "reproduce paper-table-1 --plan --dtype float16"
    result = CliRunner().invoke(cli.app, line.split())
    assert result.exit_code == 0, result.output
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text("utf-8")
    assert f"vlmflow {line}\n" in page
    assert f"```text\n{result.stdout}```" in page


def test_the_plan_counts_weights_caches_and_passes():
    import torch
    from transformers import AutoModelForImageTextToText, LlavaConfig

    from vlmflow.lvlm.model_parts import decoder_layers

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(LlavaConfig())
    layers = decoder_layers(model)
    request = Request("paper-table-1")
    plan = estimate(request, model, layers, torch.float16, 24e9)
    assert plan.weights == 2 * sum(own.numel() for own in model.parameters())
    parts = {part.data.task: part for part in plan.data}
    pope = parts["pope"]
    assert (pope.samples, pope.arms, pope.forwards) == (9000, 3, 27000)
    # Keys and values of 32 layers, 4,096 numbers each, of: the whole prompt, the text alone, and
    # the whole prompt up to layer 22; two further tokens are answered.
    tokens = 32 * (626 + 2) + 32 * (50 + 2) + 22 * 628 + 10 * 52
    assert pope.cache == 2 * 4096 * 2 * tokens
    assert all(plan.fits(part) for part in plan.data)
    small = estimate(request, model, layers, torch.float16, 12e9)
    assert not any(small.fits(part) for part in small.data)
    maps = estimate(Request("eagle-coco"), model, layers, torch.float16, 24e9)
    assert maps.fits(maps.data[0])
    assert maps.data[0].activations > pope.activations


def test_another_model_of_a_table_runs_untouched(root, tmp_path):
    """Where no layer is printed that can be read, the untouched model is still compared."""
    places = tuple((name, str(root / name)) for name in DATA)
    request = Request("paper-table-1", "copy", "Salesforce/instructblip-vicuna-7b", 3, DATA, places)
    result = run_reproduction(request, named("instructblip").lvlm(), tmp_path)
    assert {row.arm for row in result.compared} == {"untouched"}
    assert {row.measured.count for row in result.compared} == {3}
    assert len(result.compared) == 3
    reasons = {row.why_not for row in result.rows if row.published.model == "InstructBLIP2"}
    assert "the cliff layer stands only in a plot (Figure 5)" in reasons


@pytest.mark.parametrize(
    ("model_type", "table", "hub"),
    [
        ("instructblip", "paper-table-1", "Salesforce/instructblip-vicuna-7b"),
        ("qwen2_5_vl", "eagle-coco", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ],
)
def test_every_type_of_model_can_be_estimated(model_type, table, hub):
    vlm = named(model_type).lvlm()
    request = Request(table, "copy", hub)
    plan = estimate(request, vlm.model, vlm.decoder_layers, vlm.model.dtype, 24e9)
    assert [part.data.task for part in plan.data] == [data.task for data in request.data]
    assert all(part.operations > 0 and plan.fits(part) for part in plan.data)


@needs_java
def test_maps_of_a_model_with_dynamic_resolution_are_tested(tmp_path):
    hub_data.write("coco-caption", tmp_path / "coco")
    request = Request(
        "eagle-replayed", "copy", "Qwen/Qwen2.5-VL-7B-Instruct", 1, (),
        (("coco-caption", str(tmp_path / "coco")),),
    )  # fmt: skip
    result = run_reproduction(request, named("qwen2_5_vl").lvlm(), tmp_path / "out")
    assert [(row.arm, row.published.figure) for row in result.compared] == [
        ("llava_cam", "insertion"), ("llava_cam", "deletion"),
    ]  # fmt: skip
    assert sum("is not among the signals" in row.why_not for row in result.rows) == 10


@needs_java
def test_maps_are_tested_by_eagles_protocol(root, tmp_path):
    hub_data.write("coco-caption", tmp_path / "coco")
    result = command(
        root, "--out", str(tmp_path / "out"), "--samples", "1", "--data",
        f"coco-caption={tmp_path / 'coco'}", model="shallow", table="eagle-coco",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "insertion, llava_cam" in result.stdout
    assert "4 decoder layers and the table's model 32" in result.stdout
    facts = json.loads((tmp_path / "out" / "reproduction.json").read_text("utf-8"))
    ran = [row for row in facts["rows"] if row["measured"] is not None]
    assert {row["figure"] for row in ran} == {"insertion", "deletion"}
    assert all(0 < row["measured"] < 1 for row in ran)
    assert {row["arm"] for row in facts["rows"]} == {"llava_cam", "EAGLE"}
    assert (Path(tmp_path) / "out" / "coco-caption" / "faithfulness.sqlite").is_file()
