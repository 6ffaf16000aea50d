"""How a command ends that something stops: a full disk, Ctrl-C at any moment, a line misread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmflow
from tests.support.number_format import QUICKLY
from vlmflow import cli
from vlmflow.errors import ModelError

VLMFLOW = [sys.executable, "-m", "vlmflow"]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
posix = pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(path)
    return path


def finished(command, **options):
    # What is written at once cannot be left over at the end.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, timeout=120, check=False, env=buffered, **options)


@needs_full
@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["--version"]])
def test_output_that_cannot_be_written_is_one_line(arguments):
    with FULL.open("w") as full:
        done = finished([*VLMFLOW, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "vlmflow: the output cannot be written (No space left on device)\n"


@needs_full
def test_a_message_that_nobody_can_read_keeps_its_exit_code():
    with FULL.open("w") as full:
        assert finished([*VLMFLOW, "explian"], stderr=full).returncode == 2


LATE = """
import sys, typer
from vlmflow import cli
echo = typer.echo
typer.echo = lambda text, err=False: echo(text, err=True) if err else print(text)
cli.main()
"""
"""A command line whose output is written at its very end."""


@needs_full
def test_python_cannot_fail_again_at_its_end():
    """At what nothing has flushed by then."""
    with FULL.open("w") as full:
        command = [sys.executable, "-c", LATE, "signals"]
        done = finished(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"vlmflow: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("command", [VLMFLOW, [sys.executable, "-c", LATE]])
def test_a_reader_who_has_seen_enough_is_no_error(command):
    reader, writer = os.pipe()
    os.close(reader)
    done = finished([*command, "signals"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


@posix
@pytest.mark.parametrize("place", [2, 3])
def test_arguments_that_are_not_utf_8_are_one_line(picture, place):
    command = [*map(os.fsencode, VLMFLOW), b"explain", os.fsencode(picture), b"What?"]
    command[len(VLMFLOW) + place - 1] = b"caf\xe9"
    done = finished(command, capture_output=True, cwd=picture.parent)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert r"'caf\udce9'" in line or r"'\udce9'" in line
    assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]


INTERRUPTED = textwrap.dedent(
    """
    import os, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, *arguments = sys.argv[1:]

    class Interrupting:  # Ctrl-C the moment that a module is looked for
        def find_spec(self, name, path=None, target=None):
            if name == module:
                os.kill(os.getpid(), signal.SIGINT)

    sys.meta_path.insert(0, Interrupting())
    sys.argv[1:] = arguments
    from vlmflow.cli import main
    main()
    """
)


@posix
@pytest.mark.parametrize(
    "module",
    [
        *("typer", "vlmflow.cli.explain", "vlmflow.files", "vlmflow.lvlm.images", "numpy", "torch"),
        *("torch.nn", "transformers", "safetensors", "vlmflow.api", "vlmflow.reports.write"),
        "vlmflow.reports.explain.page",
    ],
)
def test_ctrl_c_while_modules_are_imported_shows_no_trace(picture, module):
    out = str(picture.parent / "out" / "deep")
    arguments = ["explain", str(picture), "What?", "--whole", "--out", out, *QUICKLY]
    done = finished(
        [sys.executable, "-c", INTERRUPTED, module, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    # A slow machine may have said how far it is.
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Measuring: ")]
    assert lines in ([], ["vlmflow: interrupted; no file is half-written"])
    assert done.stdout == ""
    assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]


@posix
@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.0, 2.0])
def test_ctrl_c_at_any_time_shows_no_trace(picture, seconds):
    command = [*VLMFLOW, "explain", str(picture), "What?", "--out", str(picture.parent / "out")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A job in the background of a script starts with this signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    if b"vlmflow" not in errors and b"Traceback" in errors:
        pytest.skip("Python itself was still starting")
    assert b"Traceback" not in errors
    assert len(errors.splitlines()) <= 1
    if process.returncode != 0:  # it was not too late
        assert process.returncode == 130
        assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]


@posix
def test_ctrl_c_while_the_commands_are_put_together_shows_no_trace():
    code = textwrap.dedent(
        """
        import os, signal, typer.main
        from vlmflow import cli
        signal.signal(signal.SIGINT, signal.default_int_handler)
        typer.main.get_command = lambda *_: os.kill(os.getpid(), signal.SIGINT)
        cli.main()
        """
    )
    done = finished([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("made_of_it", [RuntimeError, ImportError, ModelError, OSError])
@pytest.mark.parametrize("says_so", [True, False])
def test_ctrl_c_that_a_library_makes_another_error_of_is_ctrl_c(monkeypatch, made_of_it, says_so):
    def load(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            if says_so:
                raise made_of_it("Error calling __set_name__") from interrupt
            raise made_of_it("Failed to import")  # noqa: B904

    monkeypatch.setattr(vlmflow, "load", load)
    result = CliRunner().invoke(cli.app, ["cliff", "scenes-reading", "--out", "out"])
    assert result.exit_code == 130
    assert result.stderr == "vlmflow: interrupted; the same command continues from here\n"


def test_python_m_exits_with_our_code_wherever_ctrl_c_came(tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "import typer.main\nfrom vlmflow import cli\n"
        "typer.main.get_command = lambda *_: exec('raise KeyboardInterrupt')\ncli.main()\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    done = finished(command, capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, b"")


@posix
def test_ctrl_c_inside_a_destructor_is_not_lost():
    code = textwrap.dedent(
        """
        import importlib, os, signal, time
        import vlmflow.cli
        root = importlib.import_module("vlmflow.cli.app")

        class Slow:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)

        def run():
            with root.errors_in_one_line():
                item = Slow()
                del item
                time.sleep(20)
                print("went on")

        signal.signal(signal.SIGINT, signal.default_int_handler)
        root.app = run
        root.main()
        """
    )
    done = finished([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == ""
    assert "interrupted" in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["explain"], ["missing argument 'IMAGE|TASK'; see 'vlmflow explain --help'"]),
        (["explian"], ["no such command 'explian'", "'explain'", "'vlmflow --help'"]),
        (["--nope\u202e"], ["no such option: --nope\\u202e; see 'vlmflow --help'"]),
        (["models", "\u3164\x1b[2J"], ["(\\u3164\\x1b[2J)"]),
        (["cliff", "a", "--batch", "2.5"], ["'--batch'", "'2.5'"]),
        (["cliff", "a", "--out", "o", "--changed", "x"], ["'--changed'", "'x'"]),
        (["demo", "--out", ""], ["'--out': the path is empty", "see 'vlmflow demo --help'"]),
    ],
)
def test_a_misread_command_line_is_one_line_that_says_where_to_look(arguments, phrases):
    result = CliRunner().invoke(cli.app, arguments, prog_name="vlmflow")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("vlmflow: ")
    for phrase in phrases:
        assert phrase in line


def test_the_command_alone_shows_its_help():
    result = CliRunner().invoke(cli.app, [])
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@posix
def test_ctrl_c_waits_until_torch_is_imported():
    """In the middle of it, torch would end the process with a message of its own."""
    code = textwrap.dedent(
        """
        import os, signal, sys
        from vlmflow.cli.terminal import interrupts_held
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with interrupts_held():
                os.kill(os.getpid(), signal.SIGINT)
                print("imported")
        except KeyboardInterrupt:
            print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    )
    done = finished([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n") == ["imported", "interrupted True", ""], done.stderr
