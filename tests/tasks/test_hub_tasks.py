"""Data sets of the hub, read by the same code from small local copies in the hub's form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import which

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.support import hub_data
from vlmflow.errors import InputError
from vlmflow.tasks.base import SPLITS
from vlmflow.tasks.hub.catalogue import CATALOGUE
from vlmflow.tasks.hub.division import is_calibration, shuffled, shuffled_together
from vlmflow.tasks.hub.rows import Row
from vlmflow.tasks.registry import find_task, known_tasks

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
CAPTIONING = ("coco-caption", "coco-caption2017", "flickr30k", "nocaps")

needs_java = pytest.mark.skipif(which("java") is None, reason="Java is not installed")
ONE_PER_FORM = [
    pytest.param(name, marks=needs_java if name in CAPTIONING else ())
    for name in CATALOGUE
    if name not in hub_data.FORM or name == "aokvqa-direct"
]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Leave the user's cache of data sets alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Where the local copy of a task's data set is, written when it is first asked for."""
    written: dict[str, Path] = {}

    def find(name: str) -> Path:
        form = hub_data.FORM.get(name, name)
        if form not in written:
            written[form] = hub_data.write(form, tmp_path_factory.mktemp(form))
        return written[form]

    return find


@pytest.fixture(scope="module")
def opened(copies):
    """Tasks over the local copies, each opened once."""
    made = {}

    def find(name: str):
        if name not in made:
            made[name] = find_task(f"{name}@{copies(name)}")
        return made[name]

    return find


EXPECTED = {
    # key: question, references, choices, group, cluster
    "scienceqa": (
        "test-1",
        "Context: Look at it.\nWhich one is number 1?\nA. none of them\nB. the first one\n"
        f"C. the second one{LETTER}",
        ("B",),
        ("none of them", "the first one", "the second one"),
        "natural science",
        None,
    ),
    "pope": (
        "test-1",
        f"Is there a no thing 0 in the image?{SHORT}",
        ("no",),
        (),
        "adversarial",
        "COCO_val2014_000000000000",
    ),
    "pope-random": (
        "test-71",
        f"Is there a no thing 11 in the image?{SHORT}",
        ("no",),
        (),
        "random",
        "COCO_val2014_000000000011",
    ),
    "textvqa": (
        "validation-3",
        f"What does the label say?{SHORT}",
        ("Word 1",) * 7 + ("else",) * 3,
        (),
        "",
        "validation0001",
    ),
    "gqa": (
        "testdev-5",
        f"What is on the right?{SHORT}",
        ("thing 2",),
        (),
        "",
        "ntestdev2",
    ),
    "vqav2": ("validation-2", f"What is it?{SHORT}", ("two",) * 10, (), "number", "1001"),
    "aokvqa": (
        "validation-3",
        f"What is used with 3?\nA. racket\nB. fork\nC. rope\nD. oar{LETTER}",
        ("D",),
        ("racket", "fork", "rope", "oar"),
        "",
        None,
    ),
    "aokvqa-direct": (
        "validation-3",
        f"What is used with 3?{SHORT}",
        ("oar",) * 6 + ("it's a paddle",) * 4,
        (),
        "",
        None,
    ),
    "mmbench": (
        "dev-2",
        f"What is shown in 1?\nA. a cat\nB. a dog{LETTER}",
        ("A",),
        ("a cat", "a dog"),
        "object_localization",
        None,
    ),
    "mme": (
        "test-3",
        f"Is it no?{SHORT}",
        ("No",),
        (),
        "code_reasoning",
        "code_reasoning/0001.png",
    ),
    "seedbench": (
        "test-2",
        f"How many are there?\nA. one\nB. two\nC. three\nD. four{LETTER}",
        ("C",),
        ("one", "two", "three", "four"),
        "video",
        "2",
    ),
    "coco-caption": (
        "val-1",
        CAPTION,
        ("A cat sits on sofa number 1.", "A kitten on a couch."),
        (),
        "",
        "COCO_val2014_000000000001.jpg",
    ),
    "flickr30k": ("test-1", CAPTION, ("Two men in picture 1.", "Some people."), (), "", "1"),
    "nocaps": ("validation-1", CAPTION, ("A platypus in picture 1.", "An animal."), (), "", "1"),
}
EXPECTED["coco-caption2017"] = EXPECTED["coco-caption"]


def everything(chosen):
    return {sample.key: sample for split in SPLITS for sample in chosen.samples(split)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_java if name in CAPTIONING else ()) for name in EXPECTED],
)
def test_rows_become_samples(name, opened, no_network):
    key, question, references, choices, group, cluster = EXPECTED[name]
    sample = everything(opened(name))[key]
    assert sample.question == question
    assert sample.references == references
    assert (sample.choices, sample.group) == (choices, group)
    assert cluster in (sample.cluster, None)
    assert sample.cluster


@pytest.mark.parametrize("name", ONE_PER_FORM)
def test_splits_share_no_picture_and_orders_are_stable(name, opened, copies, no_network):
    chosen, again = opened(name), find_task(f"{name}@{copies(name)}")
    colours, clusters, keys = {}, {}, {}
    for split in SPLITS:
        samples = list(chosen.samples(split))
        keys[split] = [sample.key for sample in samples]
        assert len(set(keys[split])) == len(samples) > 1
        assert [sample.key for sample in again.samples(split)] == keys[split]
        assert [sample.key for sample in again.samples(split, 2)] == keys[split][:2]
        assert list(again.samples(split, 0)) == []
        colours[split] = {
            tuple(np.asarray(sample.pictures[0].convert("RGB"))[0, 0]) for sample in samples
        }
        clusters[split] = {sample.cluster for sample in samples}
        assert len(colours[split]) == len(clusters[split])
    assert not set(keys["test"]) & set(keys["calibration"])
    assert not clusters["test"] & clusters["calibration"]
    assert not colours["test"] & colours["calibration"]


@pytest.mark.parametrize("name", ONE_PER_FORM)
def test_right_answers_score_1_and_noise_0(name, opened):
    chosen = opened(name)
    samples = list(chosen.samples("test"))
    right = chosen.summary(samples, [sample.references[0] for sample in samples])
    wrong = chosen.summary(samples, ["gibberish"] * len(samples))
    assert next(iter(right)) == chosen.metric == next(iter(wrong))
    assert wrong[chosen.metric] == 0
    if chosen.by_itself:
        assert right[chosen.metric] == pytest.approx(1)
        assert chosen.score(samples[0], samples[0].references[0]) == pytest.approx(1)
    else:
        assert right[chosen.metric] > 1
    assert chosen.summary([], []) == {}


def test_further_figures_come_with_the_score(opened):
    pope, mme = opened("pope"), opened("mme")
    samples = list(pope.samples("test"))
    summary = pope.summary(samples, ["Yes."] * len(samples))
    assert (summary["accuracy"], summary["exact accuracy"], summary["yes ratio"]) == (0.5, 0, 1)
    # Pictures keep their questions together, so that a few samples have whole pairs.
    samples = list(mme.samples("test", 4))
    assert samples[0].cluster == samples[1].cluster != samples[2].cluster == samples[3].cluster
    answers = [sample.references[0] for sample in samples]
    assert mme.summary(samples, answers)["accuracy+"] == 1


@needs_java
def test_captions_of_coco_have_chair(opened):
    chosen = opened("coco-caption")
    samples = list(chosen.samples("test", 4))
    summary = chosen.summary(samples, ["A cat and a dog."] * 4)
    assert (summary["CHAIRi (captions)"], summary["CHAIRs (captions)"]) == (1 / 2, 1)


def test_several_pictures_and_pictures_kept_apart(opened):
    seed = everything(opened("seedbench"))
    assert [len(seed[f"test-{n}"].pictures) for n in (0, 1)] == [3, 1]
    gqa = everything(opened("gqa"))
    assert gqa["testdev-5"].pictures[0].getpixel((0, 0)) == hub_data.colour("testdev", 2)
    assert gqa["val-5"].pictures[0].getpixel((0, 0)) == hub_data.colour("val", 2)


def test_subsets_hold_their_rows_alone(opened):
    kinds = {
        kind: everything(opened(f"pope-{kind}")) for kind in ("random", "popular", "adversarial")
    }
    assert {
        kind: {sample.group for sample in samples.values()} for kind, samples in kinds.items()
    } == {kind: {kind} for kind in kinds}
    whole = everything(opened("pope"))
    assert sum(map(len, kinds.values())) == len(whole) == 72
    # The circular evaluation's copies, and the questions without direct answers, stay out.
    assert len(everything(opened("mmbench"))) == hub_data.PICTURES
    easy = everything(opened("aokvqa-direct"))
    assert len(easy) == 2 * (hub_data.PICTURES - 1)
    images = everything(opened("seedbench-image"))
    assert len(images) == hub_data.PICTURES // 2


def test_no_pixel_is_decoded_before_it_is_used(opened, monkeypatch):
    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    (sample,) = opened("mmbench").samples("test", 1)
    with pytest.raises(AssertionError, match="decoded"):
        sample.pictures[0].convert("RGB")


def test_a_picture_in_both_official_splits_is_for_the_test(tmp_path):
    def share(rows):
        for row in rows[:3]:
            row["image"] = hub_data.png("both", 1)
        return rows

    chosen = find_task(f"scienceqa@{hub_data.write('scienceqa', tmp_path, share)}")
    assert find_task(chosen.address).sources == chosen.sources == (str(tmp_path),)
    assert len(list(chosen.samples("test"))) == hub_data.PICTURES
    keys = {sample.key for sample in chosen.samples("calibration")}
    assert keys == {f"validation-{number}" for number in range(3, hub_data.PICTURES)}


def test_a_directory_with_one_configuration_needs_no_name_for_it(copies, tmp_path):
    for file in (copies("scienceqa") / "ScienceQA-IMG").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert len(list(find_task(f"scienceqa@{tmp_path}").samples("test"))) == hub_data.PICTURES


# How pictures and rows are divided may never change: published figures depend on it.


def test_the_division_is_the_same_for_ever():
    assert [number for number in range(12) if is_calibration(str(number))] == [9, 10, 11]
    assert shuffled(range(8)) == [7, 5, 2, 4, 1, 0, 3, 6]
    assert shuffled_together(range(6), ["b", "b", "a", "a", "c", "c"]) == [2, 3, 4, 5, 0, 1]
    share = sum(is_calibration(f"COCO_val2014_{n:012}") for n in range(3000)) / 3000
    assert share == pytest.approx(1 / 3, abs=0.03)  # 3.5 standard deviations


# What goes wrong


def test_ids_on_the_hub_are_tried_in_turn(copies, monkeypatch):
    calls = []
    load = datasets.load_dataset

    def pretend(source, config, **options):
        calls.append((source, config, options))
        if source == "lmms-lab/MMBench":
            return load(str(copies("mmbench")), config, **options)
        raise datasets.exceptions.DatasetNotFoundError(f"no {source}\non the hub")

    monkeypatch.setattr(datasets, "load_dataset", pretend)
    assert list(find_task("mmbench").samples("test", 1))
    # No option that would run code from the hub is passed.
    assert calls == [
        (f"{owner}/MMBench", "en", {"split": "dev"}) for owner in ("lmms-lab-encoder", "lmms-lab")
    ]
    with pytest.raises(InputError) as caught:
        next(find_task("vqav2").samples("test"))
    assert str(caught.value) == (
        "split 'validation' of task 'vqav2' cannot be opened (lmms-lab-encoder/VQAv2: no "
        "lmms-lab-encoder/VQAv2 on the hub; lmms-lab/VQAv2: no lmms-lab/VQAv2 on the hub); check "
        "the id and the network, or give a local copy: vqav2@DIRECTORY"
    )
    calls.clear()
    with pytest.raises(InputError, match="somebody/VQAv2: no somebody/VQAv2"):
        next(find_task("vqav2@somebody/VQAv2").samples("test"))
    assert [source for source, *_ in calls] == ["somebody/VQAv2"]


def test_without_a_network_the_reason_is_given(no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"Couldn't reach 'lmms-lab/POPE'.*; check the id and the"):
        next(find_task("pope").samples("test"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pope@", r"write pope@DIRECTORY"),
        ("pope@nowhere", r"'nowhere' is not a directory; give one that holds"),
        ("pope@./not/here", r"'./not/here' is not a directory"),
        ("pope@../here", r"'../here' is not a directory"),
        (
            "popes",
            r"unknown task 'popes'; there are scenes-reasoning, .*, pope-random, .*, nocaps,",
        ),
        ("popes@x/y", r"unknown task"),
    ],
)
def test_names_that_mean_nothing_are_refused_at_once(name, message):
    with pytest.raises(InputError, match=message):
        find_task(name)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"""'gqa' needs .*; run: pip install "vlmflow\[data\]"$"""
    ):
        find_task("gqa")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("pope", "answer"),
        ("pope", "image_source"),
        ("pope-random", "category"),
        ("scienceqa", "hint"),
        ("mmbench", "index"),
        ("vqav2", "image"),
    ],
)
def test_missing_columns_are_named(name, column, tmp_path):
    def drop(rows):
        return [{key: row[key] for key in row if key != column} for row in rows]

    broken = find_task(f"{name}@{hub_data.write(name, tmp_path, drop)}")
    with pytest.raises(
        InputError, match=rf"has no column '{column}', which task '{name}' reads; it"
    ):
        next(broken.samples("test"))


def spoilt(column, value):
    def change(rows):
        return [row | {column: value} for row in rows]

    return change


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("pope", "question", 7, r"'question' of row \d+ of split 'test' .* is 7, not a text"),
        ("scienceqa", "answer", 3, r"column 'answer' of .* is 3, which is none of the 3 options'"),
        ("scienceqa", "answer", 1.5, r"is 1.5, not a whole number"),
        ("scienceqa", "choices", "yes", r"is 'yes', not a list of texts"),
        ("mmbench", "answer", "E", r"is 'E', which is none of the [23] options'"),
        ("mmbench", "index", "one", r"column 'index' of row 0 of .* is 'one', not a whole number"),
        ("textvqa", "answers", [1, 2], r"is \[1, 2\], not a list of texts"),
        ("aokvqa-direct", "direct_answers", "[oar", r"is '\[oar', not a list of texts"),
        ("pope", "image", None, r"column 'image' of .* is None, not a picture"),
        ("pope", "image", b"GIF", r"the picture in row \d+ of .* is not a picture in a format"),
        ("gqa", "imageId", "n0", r"about picture 'n0', which split 'testdev' of .* does not have"),
        ("pope-random", "category", "rare", r"has no samples for task 'pope-random', test"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_named(name, column, value, message, tmp_path):
    def change(rows):
        return spoilt(column, value)(rows) if column in rows[0] else rows

    broken = find_task(f"{name}@{hub_data.write(name, tmp_path, change)}")
    with pytest.raises(InputError, match=message):
        list(broken.samples("test"))


def test_pictures_may_be_paths(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(file)
    row = Row({"image": {"bytes": None, "path": str(file)}}, "row 0")
    same = Row({"image": file.read_bytes()}, "row 1")
    assert row.pictures("image") == (file,)
    assert row.fingerprint("image") == same.fingerprint("image")
    file.unlink()
    with pytest.raises(InputError, match=r"a\.png' of row 0 cannot be read \(No such file"):
        row.fingerprint("image")


def test_directories_that_hold_no_such_data_set(tmp_path, copies):
    def refused(message):
        with pytest.raises(InputError, match=message):
            next(find_task(f"pope@{tmp_path}").samples("test"))

    refused("any data files.*; the directory has to hold the data set's files as they are on the")
    ran = tmp_path / "ran"
    script = tmp_path / f"{tmp_path.name}.py"
    script.write_text(f"open({str(ran)!r}, 'w')")
    refused("scripts are no longer supported")
    assert not ran.exists()
    script.unlink()
    (tmp_path / "test.parquet").write_bytes(b"no table")
    refused("cannot be opened")
    (tmp_path / "test.parquet").unlink()
    source = next((copies("pope") / "data").iterdir())
    (tmp_path / "train.parquet").write_bytes(source.read_bytes())
    refused(r"Unknown split \"test\"\. Should be one of \['train'\]")


# The list of tasks


def test_the_list_names_every_task_with_its_metric():
    tasks = {task.name: task for task in known_tasks()}
    assert set(tasks) >= {"scenes-caption", "pope-adversarial", "coco-caption", *CATALOGUE}
    for name, task in tasks.items():
        assert task.description
        assert "\n" not in task.description
        assert bool(task.hub) == (name in CATALOGUE)
        if name not in CAPTIONING:
            assert find_task(name).metric == task.metric
    assert tasks["pope"].hub == "lmms-lab-encoder/POPE"
    assert tasks["nocaps"].metric == "CIDEr"


def test_the_documentation_has_a_row_for_every_data_set():
    page = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    for name, data in CATALOGUE.items():
        (row,) = (row for row in rows if f"`{name}`" in row)
        assert f"`{data.hub[0]}`" in row
        assert f"| {data.test.split}" in row
        assert (data.calibration is None) == ("its other third" in row)


def test_the_list_imports_nothing_heavy():
    code = (
        "import sys; from vlmflow.tasks.registry import known_tasks; assert known_tasks();"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'pycocoevalcap'};"
        "print(heavy & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "set()\n", run.stderr
