"""Nothing that is given by mistake ends in anything but one line that names it.

A tenth of the inputs, and all of them with VLMFLOW_HARD_TESTS=all (`make hard-tests`).
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.hard.bad_inputs import bad_inputs, write_files
from vlmflow import cli

INPUTS = bad_inputs()
ALL = os.environ.get("VLMFLOW_HARD_TESTS") == "all"
CHOSEN = INPUTS if ALL else random.Random(0).sample(INPUTS, len(INPUTS) // 10)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    write_files(directory)
    return directory


def everything(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_there_are_enough_of_them_and_over_all_commands():
    assert len(INPUTS) >= 400
    assert len(set(INPUTS)) == len(INPUTS)
    assert {bad.arguments[0] for bad in INPUTS} >= set(cli_commands())


def cli_commands():
    import typer.main

    return typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("bad", CHOSEN, ids=str)
def test_a_bad_input_is_one_line_and_leaves_nothing(bad, root, tmp_path, monkeypatch, capfd):
    arguments = [
        f"{root}/{argument[1:]}" if argument.startswith("@") else argument
        for argument in bad.arguments
    ]
    monkeypatch.chdir(tmp_path)
    before = everything(root)
    with pytest.raises(SystemExit) as ending:
        cli.app(arguments, prog_name="vlmflow")
    sys.stdout.flush()
    output = capfd.readouterr()
    assert ending.value.code == 2, output.err
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("vlmflow: ")
    assert bad.names in line
    assert line.isprintable()
    assert list(tmp_path.iterdir()) == []
    assert everything(root) == before
