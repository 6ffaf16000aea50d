"""Every block of the README runs as it stands, with the bundled model in place of hub names."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.cut_short import cut_short
from tests.test_docs import BLOCK, check_command, forget, in_notebook, run
from vlmflow import cli

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore")
def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut_short(monkeypatch)
    assert CliRunner().invoke(cli.app, ["sample", "--out", "."]).exit_code == 0
    names = {"__name__": "readme"}
    kinds = []
    for number, (kind, block) in enumerate(BLOCK.findall(README.read_text("utf-8"))):
        kinds.append(kind)
        if kind == "python":
            exec(in_notebook(block, f"<README.md, block {number}>"), names)
        elif kind in ("console", "bash"):
            for line in block.splitlines():
                check_command(line)
                run(line)
    forget(names)
    assert kinds.count("python") >= 1
    assert kinds.count("console") + kinds.count("bash") >= 2


def test_the_sample_files_are_whole_or_not_there(tmp_path):
    (tmp_path / "taken").write_text("")
    refused = CliRunner().invoke(cli.app, ["sample", "--out", str(tmp_path / "taken")])
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
