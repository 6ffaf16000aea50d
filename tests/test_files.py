"""Files of one result arrive all together or not at all."""

from __future__ import annotations

import errno
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlmflow
from vlmflow.errors import InputError
from vlmflow.files import as_path, staged, write_files


def everything(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_a_new_directory_arrives_whole(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    with staged(out) as staging:
        (staging / "one.txt").write_text("1")
        (staging / "deep").mkdir()
        (staging / "deep" / "two.txt").write_text("2")
        assert not out.exists()
    assert everything(out) == ["deep", "deep/two.txt", "one.txt"]
    assert everything(tmp_path / "a" / "b") == ["out", *(f"out/{n}" for n in everything(out))]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_an_existing_directory_keeps_its_other_files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("one.txt", "mine.txt", "deep/mine.txt"):
        (tmp_path / name).write_text("old")
    with staged(tmp_path) as staging:
        (staging / "one.txt").write_text("new")
        (staging / "deep").mkdir()
        (staging / "deep" / "two.txt").write_text("new")
    assert everything(tmp_path) == [
        "deep",
        "deep/mine.txt",
        "deep/two.txt",
        "mine.txt",
        "one.txt",
    ]
    assert (tmp_path / "one.txt").read_text() == "new"
    assert (tmp_path / "mine.txt").read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_nothing_is_left_behind(tmp_path, error, existing):
    out = tmp_path / "out" if existing else tmp_path / "a" / "b" / "out"
    if existing:
        out.mkdir()
        (out / "one.txt").write_text("old")
    before = everything(tmp_path)

    def half_way():
        with staged(out) as staging:
            (staging / "one.txt").write_text("half")
            raise error

    with pytest.raises(error):
        half_way()
    assert everything(tmp_path) == before
    if existing:
        assert (out / "one.txt").read_text() == "old"


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    for out, message in (
        (tmp_path / "file", "not a directory"),
        (tmp_path / "file" / "out", "cannot be written"),
        (tmp_path / "dangling", "not a directory"),
        (tmp_path / ("x" * 300), "cannot be written"),
        (tmp_path / "taken", "report.html"),
    ):
        with pytest.raises(InputError, match=message), staged(out, ["report.html"]):
            pytest.fail("the block ran")
    assert everything(tmp_path) == before


def test_a_read_only_directory_is_refused(tmp_path, monkeypatch):
    """The system's refusal is played, because root may write everywhere."""

    def refuse(self, *_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for out in (tmp_path, tmp_path / "out"):
        with pytest.raises(InputError, match="cannot be written"), staged(out):
            pytest.fail("the block ran")
    assert everything(tmp_path) == []


def test_what_goes_wrong_while_moving_is_an_input_error(tmp_path):
    def blocked():
        with staged(tmp_path) as staging:
            (staging / "name").write_text("new")
            (tmp_path / "name").mkdir()  # by someone else, meanwhile

    with pytest.raises(InputError, match="cannot be written"):
        blocked()
    assert everything(tmp_path) == ["name"]


def test_files_are_written_together_or_not_at_all(tmp_path):
    out = tmp_path / "new" / "out"
    assert write_files(out, {"one.txt": b"1", "two.txt": b"2"}) == out
    assert (out / "one.txt").read_bytes() == b"1"
    before = everything(tmp_path)
    for name in ("x" * 300, "no/such/folder"):
        with pytest.raises(InputError, match="choose a path you can write to"):
            write_files(out, {"one.txt": b"new", name: b"2"})
    with pytest.raises(InputError, match="choose a path you can write to"):
        write_files(tmp_path / "other", {"one.txt": b"1", "nul\0": b"2"})
    assert everything(tmp_path) == before
    assert (out / "one.txt").read_bytes() == b"1"


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_killed_process_left_is_removed_by_the_next_run(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    code = f"""
    import os, pathlib, signal, sys
    from vlmflow.files import staged
    with staged(pathlib.Path({str(out)!r})) as staging:
        (staging / "half").write_text("x")
        print("ready", flush=True)
        sys.stdin.read()
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    killed, alive = processes
    killed.kill()
    killed.wait()
    home = out if exists else tmp_path
    assert len([path for path in home.iterdir() if path.is_dir() and path != out]) == 2
    write_files(out, {"whole": b"y"})
    assert [path.name for path in out.iterdir() if path.is_file() and path.suffix != ".lock"] == [
        "whole"
    ]
    # Only the living one's is left, which it finishes.
    (staging,) = [path for path in home.iterdir() if path.is_dir() and path != out]
    assert (staging / "half").is_file()
    alive.communicate()
    assert alive.returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["half", "whole"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_cannot_be_written_is_told_by_where_it_was_to_be(tmp_path):
    def write():
        with staged(tmp_path / "out") as staging:
            (staging / "page").mkdir()
            write_files(staging, {"page": b""})

    with pytest.raises(InputError) as error:
        write()
    assert str(tmp_path / "out" / "page") in str(error.value)
    assert ".vlmflow-" not in str(error.value)


def interrupting(function):
    """The same function, with Ctrl-C after what it does."""

    def interrupted(*arguments, **options):
        result = function(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return result

    return interrupted


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("call", ["mkdir", "replace", "rmtree"])
def test_ctrl_c_between_two_system_calls_waits_for_all_of_them(tmp_path, monkeypatch, call):
    """In setting up, in moving and in cleaning up: no file or all of them, and it is not lost."""
    out = tmp_path if call == "replace" else tmp_path / "a" / "b"
    owner = shutil if call == "rmtree" else Path
    monkeypatch.setattr(owner, call, interrupting(getattr(owner, call)))
    with pytest.raises(KeyboardInterrupt):
        write_files(out, {"one.txt": b"1", "two.txt": b"2"})
    monkeypatch.undo()
    whole = ["a", "a/b", "a/b/one.txt", "a/b/two.txt"]
    left = {"mkdir": [], "replace": ["one.txt", "two.txt"], "rmtree": whole}
    assert everything(tmp_path) == left[call]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heard")
def test_a_second_ctrl_c_does_not_stop_the_cleaning_up(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", interrupting(shutil.rmtree))
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    monkeypatch.undo()
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "is empty"), ("half\ud800", "half of a surrogate"), ("a\0b", "NUL character")],
)
def test_a_path_that_no_file_can_have_is_refused_everywhere(path, message, tmp_path, monkeypatch):
    from vlmflow.reports.directory import write_directory
    from vlmflow.result.storage import read_pair, write_pair
    from vlmflow.studies.truncations.plan import read_plan
    from vlmflow.tasks.question_file import read_rows

    monkeypatch.chdir(tmp_path)
    vlm = object()
    for call in (
        lambda: as_path(path),
        lambda: write_files(path, {"a.txt": b"a"}),
        lambda: write_directory(None, path),
        lambda: write_pair(path, {}, {}),
        lambda: read_pair(path),
        lambda: vlmflow.study(vlm, "scenes-reading", ["vtw"], out=path),
        lambda: vlmflow.cliff_study(vlm, "scenes-reading", out=path),
        *([lambda: read_plan(Path(path)), lambda: read_rows(Path(f"{path}.csv"))] if path else []),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert everything(tmp_path) == []
