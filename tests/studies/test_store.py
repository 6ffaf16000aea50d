"""A store tells what is wrong with it in one sentence, and gives back what can be read."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.studies.test_study import plan_of, write_questions
from tests.support.tiny import tiny_llava
from vlmflow import LVLM
from vlmflow.errors import DamagedStore, InputError
from vlmflow.studies import store as store_module
from vlmflow.studies.cliff_layer.run import read_cliff_study, run_cliff_study
from vlmflow.studies.cliff_layer.settings import CliffSettings
from vlmflow.studies.cliff_layer.store import CLIFF
from vlmflow.studies.store import Store, writing
from vlmflow.studies.store_kind import StoreKind
from vlmflow.studies.truncations.results import read_study
from vlmflow.studies.truncations.run import run_study
from vlmflow.studies.truncations.store import STUDY
from vlmflow.tasks.folder import FolderTask


@dataclass(frozen=True)
class Row:
    id: str
    text: str
    number: float | None
    data: bytes | None


KIND = StoreKind("thing", "vlmflow thing", 1, {"row": Row})
ROWS = [Row(f"{i}", f"text {i} " * 20, i / 7, bytes([i % 256]) * 60) for i in range(400)]


def fill(directory, rows=ROWS):
    with writing(directory, KIND) as store:
        store.write("study", {"n": len(rows)})
        store.add(*rows)
    return directory / KIND.file


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def execute(path, *commands):
    base = sqlite3.connect(path)
    for command in commands:
        base.execute(command)
    base.commit()
    base.close()


def read_all(directory):
    store = Store(directory, KIND)
    try:
        assert store.record() == {"n": len(ROWS)}
        return list(store.get_all(Row, [row.id for row in ROWS]).values())
    finally:
        store.close()


def test_what_was_written_is_read_and_nothing_else_has_to_be_copied(tmp_path):
    path = fill(tmp_path / "a")
    assert {item.name for item in path.parent.iterdir()} == {"thing.sqlite", "thing.lock"}
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b")
    assert sorted(read_all(tmp_path / "b"), key=lambda row: int(row.id)) == ROWS
    # Reading leaves nothing behind and changes nothing.
    assert [item.name for item in (tmp_path / "b").iterdir()] == ["thing.sqlite"]
    assert (tmp_path / "b" / KIND.file).read_bytes() == path.read_bytes()


DAMAGES = {
    "a missing table": "DROP TABLE row",
    "a missing record": "DROP TABLE study",
    "a missing row": "DELETE FROM row WHERE id = '7'",
    "a changed number": "UPDATE row SET number = 5 WHERE id = '7'",
    "a blob where text was": "UPDATE row SET text = x'ff00fe' WHERE id = '7'",
    "text that is no text": "UPDATE row SET text = CAST(x'ff00fe' AS TEXT) WHERE id = '7'",
    "nothing where a blob was": "UPDATE row SET data = NULL WHERE id = '7'",
    "a record that was changed": "UPDATE study SET value = '[1' WHERE name = 'study'",
    "a column too many": "ALTER TABLE row ADD COLUMN more TEXT",
}


@pytest.mark.parametrize("command", DAMAGES.values(), ids=list(DAMAGES))
def test_rows_that_are_not_what_was_written_are_told_and_written_again(tmp_path, command):
    path = fill(tmp_path)
    execute(path, command)
    with pytest.raises(InputError) as error:
        read_all(tmp_path)
    text = one_sentence(error)
    assert str(path) in text
    assert "damaged" in text
    assert "of its rows can be read: the same 'vlmflow thing' keeps them" in text
    with told_or_not("TABLE" in command), writing(tmp_path, KIND) as store:
        lost = store.changed(ROWS)
        assert {row.id for row in lost} <= ({row.id for row in ROWS} if "TABLE" in command
                                            else {"7"})  # fmt: skip
        store.add(*lost)
        store.write("study", {"n": len(ROWS)})
    assert sorted(read_all(tmp_path), key=lambda row: int(row.id)) == ROWS


def told_or_not(told):
    return pytest.warns(DamagedStore, match="rows were saved") if told else nullcontext()


@pytest.mark.parametrize("seed", range(8))
def test_pages_that_were_overwritten_cost_their_rows_alone(tmp_path, seed):
    path = fill(tmp_path)
    whole, draw = path.read_bytes(), random.Random(seed)
    size = int.from_bytes(whole[16:18], "big")
    page = draw.randrange(2, len(whole) // size)
    junk = bytes(size) if seed % 2 else draw.randbytes(size)
    path.write_bytes(whole[: page * size] + junk + whole[(page + 1) * size :])
    with pytest.raises(InputError) as error:
        read_all(tmp_path)
    assert "damaged" in one_sentence(error)
    with told_or_not(True), writing(tmp_path, KIND) as store:
        lost = store.changed(ROWS)
        assert len(lost) < len(ROWS)
        store.add(*lost)
        store.write("study", {"n": len(ROWS)})
    assert sorted(read_all(tmp_path), key=lambda row: int(row.id)) == ROWS
    assert (tmp_path / "thing.damaged.sqlite").read_bytes()[page * size :][:size] == junk


@pytest.mark.filterwarnings("ignore:.*rows were saved")
@pytest.mark.parametrize("seed", range(60))
def test_damage_is_never_read_as_if_it_were_none(tmp_path, seed):
    """Anywhere in the file, from a byte to some pages: the rows, or one sentence."""
    draw = random.Random(seed)
    rows = ROWS[:60]
    path = fill(tmp_path, rows)
    whole = path.read_bytes()
    length = draw.choice([1, 20, 500, 6000])
    place = draw.randrange(len(whole) - length)
    junk = draw.choice([bytes(length), draw.randbytes(length)])
    path.write_bytes(whole[:place] + junk + whole[place + length :])
    told = None
    try:
        with closing(Store(tmp_path, KIND)) as store:
            store.record()
            assert store.get_all(Row, [row.id for row in rows]) == {row.id: row for row in rows}
    except InputError as error:
        told = str(error)
    try:
        fill(tmp_path, rows)
    except InputError as error:
        told = str(error)
    else:
        with closing(Store(tmp_path, KIND)) as store:
            assert store.get_all(Row, [row.id for row in rows]) == {row.id: row for row in rows}
    assert told is None or "\n" not in told


@pytest.mark.parametrize("content", [b"no database " * 500, b"SQLite format 3\0" + bytes(5000)])
def test_where_nothing_can_be_read_nothing_is_changed(tmp_path, content):
    path = tmp_path / KIND.file
    path.write_bytes(content)
    for refused in (lambda: Store(tmp_path, KIND), lambda: fill(tmp_path)):
        with pytest.raises(InputError, match="nothing in it can be read; remove the file") as error:
            refused()
        one_sentence(error)
        assert path.read_bytes() == content
    assert {item.name for item in tmp_path.iterdir()} == {"thing.sqlite", "thing.lock"}


def test_a_file_that_is_cut_off_gives_back_its_beginning(tmp_path):
    path = fill(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="damaged"):
        read_all(tmp_path)
    with pytest.warns(DamagedStore), writing(tmp_path, KIND) as store:
        assert 0 < len(store.changed(ROWS)) < len(ROWS)


# --- whole studies ---


@pytest.fixture(scope="module")
def vlm():
    return LVLM(*tiny_llava(7, layers=4), name="tiny")


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path)


class Truncations:
    kind = STUDY

    def run(self, vlm, questions, directory):
        run_study(plan_of(questions, timed=0), directory, vlm=vlm)

    def table(self, directory):
        return read_study(directory).result_frame()


class Cliff:
    kind = CLIFF

    def run(self, vlm, questions, directory):
        settings = CliffSettings(samples=4, calibration=4, batch=2, draws=20)
        task = FolderTask(questions)
        task.max_new_tokens = 4
        run_cliff_study(vlm, task, settings, directory)

    def table(self, directory):
        study = read_cliff_study(directory)
        return pd.concat([study.sample_frame(), study.layer_frame()])


STUDIES = pytest.mark.parametrize("study", [Truncations(), Cliff()], ids=["truncations", "cliff"])


@STUDIES
def test_a_damaged_study_is_told_and_ends_with_the_same_table(study, vlm, questions, tmp_path):
    out = tmp_path / "out"
    study.run(vlm, questions, out)
    expected, path = study.table(out), out / study.kind.file
    tables = [*study.kind.tables, "study"]
    commands = [f"DELETE FROM {table}" for table in tables if table != "prefill"]
    commands += [f"DROP TABLE {table}" for table in tables]
    commands += [
        f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})"
        for table in study.kind.tables
        if table != "prefill"
    ]
    for command in commands:
        execute(path, command)
        with pytest.raises(InputError) as error:
            study.table(out)
        one_sentence(error)
        with told_or_not("DROP" in command):
            study.run(vlm, questions, out)
        pd.testing.assert_frame_equal(study.table(out), expected)


@STUDIES
def test_a_full_disk_is_one_sentence_and_the_rest_goes_on(
    study, vlm, questions, tmp_path, monkeypatch
):
    """SQLite's own limit of pages gives the error of a full disk, at any of the commits."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    study.run(vlm, questions, whole)
    expected = study.table(whole)
    with closing(sqlite3.connect(whole / study.kind.file)) as base:
        (pages,) = base.execute("PRAGMA page_count").fetchone()
    connect = store_module.connect
    kept = []
    for limit in (pages // 3, pages // 2, pages - 1):

        def full(path, *, create=False, limit=limit):
            base = connect(path, create=create)
            base.execute(f"PRAGMA max_page_count = {limit}")
            return base

        monkeypatch.setattr(store_module, "connect", full)
        with pytest.raises(InputError, match=r"disk is full.* is kept: free space") as error:
            study.run(vlm, questions, out)
        one_sentence(error)
        monkeypatch.setattr(store_module, "connect", connect)
        kept.append(rows_in(out / study.kind.file))
    assert kept == sorted(kept)
    assert kept[-1] > 0
    study.run(vlm, questions, out)
    pd.testing.assert_frame_equal(study.table(out), expected)


def rows_in(path):
    with closing(sqlite3.connect(path)) as base:
        if not base.execute("SELECT * FROM sqlite_master WHERE name = 'sample'").fetchall():
            return 0
        (count,) = base.execute("SELECT count(*) FROM sample").fetchone()
        return count


@STUDIES
def test_a_copy_of_the_one_file_is_the_whole_study(study, vlm, questions, tmp_path):
    study.run(vlm, questions, tmp_path / "out")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "out" / study.kind.file, tmp_path / "copy")
    pd.testing.assert_frame_equal(study.table(tmp_path / "copy"), study.table(tmp_path / "out"))


@pytest.mark.skipif(
    os.name == "nt" or (os.getuid() == 0 and shutil.which("setpriv") is None),
    reason="needs permissions that bind whoever runs this",
)
def test_a_read_only_directory_is_reported_elsewhere(vlm, questions, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    Truncations().run(vlm, questions, out)
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in [*out.iterdir(), out]:
        path.chmod(0o555)
    # Permissions bind the superuser, too, once it has given up what lets it pass them.
    bound = ["setpriv", "--bounding-set=-all"] if os.getuid() == 0 else []

    def report(*more):
        return subprocess.run(
            [*bound, sys.executable, "-m", "vlmflow", "report", str(out), *more],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    refused = report()
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert "cannot be written (Permission denied); choose a path" in line
    written = report("--out", str(elsewhere))
    assert written.returncode == 0, written.stderr
    assert (elsewhere / "study.html").is_file()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == content
    out.chmod(0o755)


# --- cliff studies ---


def cliff_settings(**changes):
    return CliffSettings(**{"samples": 4, "calibration": 4, "batch": 2, "draws": 20, **changes})


def test_a_cliff_study_measures_nothing_twice_and_never_mixes(
    vlm, questions, tmp_path, monkeypatch
):
    from vlmflow.studies.cliff_layer import measuring

    measured, measure = [], measuring.measure_samples

    def noting(model, samples, length, **options):
        measured.extend(item.sample.key for item in samples)
        return measure(model, samples, length, **options)

    monkeypatch.setattr(measuring, "measure_samples", noting)

    def again(model=vlm, length=4, **changes):
        measured.clear()
        task = FolderTask(questions)
        task.max_new_tokens = length
        study = run_cliff_study(model, task, cliff_settings(**changes), tmp_path / "out")
        return len(measured), study

    assert again()[0] == 8
    count, study = again()
    assert count == 0
    assert all(sample.sample.pictures for sample in study.measurements)
    # What is asked of the measurements is no part of them.
    assert again(tolerance=0.5, changed=0.4, draws=10, seed=1)[0] == 0
    assert again(samples=3)[0] == 1  # the last sample is measured alone now
    assert again(length=3)[0] == 8
    assert again(batch=3)[0] == 8
    other = LVLM(*tiny_llava(8, layers=4), name="tiny")
    count, study = again(other)
    fresh = run_cliff_study(other, short(questions), cliff_settings())
    assert count == 8
    pd.testing.assert_frame_equal(study.layer_frame(), fresh.layer_frame())
    assert again()[0] == 0
    Image.new("RGB", (50, 50), "red").save(questions.parent / "7.png")
    assert again()[0] == 2  # it, and what was measured with it


def short(questions):
    task = FolderTask(questions)
    task.max_new_tokens = 4
    return task


def test_a_stored_measurement_is_the_measurement_bit_by_bit(vlm, questions, tmp_path):
    fresh = run_cliff_study(vlm, short(questions), cliff_settings(), tmp_path)
    read = read_cliff_study(tmp_path, short(questions))
    assert read.to_json() == fresh.to_json()
    for a, b in zip(read.measurements, fresh.measurements, strict=True):
        assert a.answer == b.answer
        assert a.curve.answer_tokens == b.curve.answer_tokens
        for name in ("kl", "agrees", "ends_alike", "logprob", "untouched_logprob"):
            one, other = getattr(a.curve, name), getattr(b.curve, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert a.signals.keys() == b.signals.keys()
        for name in a.signals:
            np.testing.assert_array_equal(a.signals[name], b.signals[name])
