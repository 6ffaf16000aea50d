"""``vlmflow env``: enough to repeat a problem, nothing about who has it."""

from __future__ import annotations

import getpass
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from typer.testing import CliRunner

from vlmflow import __version__, cli
from vlmflow.cli.env import installed_version


def printed(*options: str) -> str:
    result = CliRunner().invoke(cli.app, ["env", *options])
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def test_versions_platform_and_devices_are_there():
    facts = json.loads(printed("--json"))
    assert facts["vlmflow"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["transformers"] == version("transformers")
    assert facts["python"].startswith(platform.python_version())
    assert facts["platform"].split() == [platform.system(), platform.machine()]
    assert facts["devices"].split(", ")[0] == "cpu"
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in facts["devices"]
    lines = printed().splitlines()
    assert [line.split("  ")[0] for line in lines] == list(facts)


def test_no_path_user_or_machine_is_named(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "the-machine")
    monkeypatch.setenv("HOME", "/home/the-user")
    monkeypatch.setenv("USER", "the-user")
    text = printed() + printed("--json")
    for private in ("the-machine", "the-user", str(Path.cwd()), str(Path(torch.__file__).parent)):
        assert private not in text
    assert "/" not in text
    if getpass.getuser() != "root":  # "the-user" above; some systems ask elsewhere
        assert getpass.getuser() not in text


def test_what_is_missing_is_said():
    assert installed_version("no-such-package-anywhere") == "not installed"
