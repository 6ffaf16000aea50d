"""What holds for the package as a whole: quick to import, versioned, typed, licensed, layered."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from importlib.metadata import entry_points, requires, version
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vlmflow

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "vlmflow"
HEAVY = ("torch", "transformers", "matplotlib", "pandas")

FLOORS = ("lvlm", "flow", "truncation", "removal", "tasks", "study", "report", "cli")
"""Lower floors never import higher ones. Two methods of LVLM alone reach up, inside the call."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )


def quickest(arguments: list[str], runs: int = 5) -> float:
    """Seconds of the quickest of a few runs: the others measure a busy machine."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize("arguments", [["-c", "import vlmflow"], ["-m", "vlmflow", "--help"]])
def test_import_and_help_take_under_half_a_second(arguments):
    assert quickest(arguments) < 0.5


@pytest.mark.parametrize("module", ["vlmflow", "vlmflow.cli", "vlmflow.lvlm.images"])
def test_no_heavy_library_is_imported(module):
    loaded = python(f"import sys, json, {module}; print(json.dumps(list(sys.modules)))").stdout
    assert not set(HEAVY) & set(json.loads(loaded))


def test_public_names_are_found_when_they_are_used():
    assert set(vlmflow.__all__) <= set(dir(vlmflow))
    for name in vlmflow.__all__:
        assert getattr(vlmflow, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        vlmflow.laod  # noqa: B018


def test_version_is_the_same_everywhere():
    assert version("vlmflow") == vlmflow.__version__
    assert f"version: {vlmflow.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="vlmflow")
    assert command.value == "vlmflow.cli:main"


def test_the_package_is_marked_as_typed():
    assert files("vlmflow").joinpath("py.typed").is_file()


def test_licence_text_is_whole():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_paper_is_cited():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    assert "2406.06579" in text
    assert "2025.naacl-long.115" in text


def test_everything_declared_is_pinned_within_its_range():
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(pin.name, set()).add(str(pin.specifier).removeprefix("=="))
    assert pins["torch"] == {"2.13.0"}
    for text in requires("vlmflow") or []:
        declared = Requirement(text)
        if declared.name != "vlmflow":
            assert pins.get(declared.name), f"{declared.name} has no pin"
            assert all(declared.specifier.contains(pin) for pin in pins[declared.name]), declared


def test_lower_floors_never_import_higher_ones():
    uphill = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room not in FLOORS:
            continue
        higher = FLOORS[FLOORS.index(room) + 1 :]
        tree = ast.parse(path.read_text("utf-8"))
        # Imports inside functions and under TYPE_CHECKING do not run on import.
        for node in tree.body:
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            uphill += [
                f"{path.relative_to(ROOT)} imports {name}"
                for name in names
                for floor in higher
                if name.startswith(f"vlmflow.{floor}")
            ]
    assert uphill == []
