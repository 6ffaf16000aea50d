"""Examples run as they stand, on the bundled model; an argument names another one."""

from __future__ import annotations

import gc
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import vlmflow
from tests.support.cut_short import cut_short
from vlmflow.studies.truncations.plan import Plan

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

CUT_SHORT = f"""
import sys

sys.path.insert(0, {str(EXAMPLES.parent)!r})

from pytest import MonkeyPatch

from tests.support.cut_short import cut_short

cut_short(MonkeyPatch())
"""
"""A first cell of a notebook, whose own process no fixture reaches."""

WRITES = {
    "certify": "policy/certificate.html",
    "explain": "explained.html",
    "explain_folder": "explained-answers/index.html",
    "find_cliff": "cliff/cliff.html",
    "own_ranking": "rankings/study.html",
    "own_signal": "own-signal.html",
    "truncate": None,
}
"""The page that each script writes, if any."""


@pytest.fixture(autouse=True)
def _forget_classes():
    """Classes of examples are known by name to the process: let go of them."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_as_it_stands(path, tmp_path, monkeypatch, capsys):
    """But for what ``cut_short`` says."""
    monkeypatch.chdir(tmp_path)
    cut_short(monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(path)])
    assert len(path.read_text("utf-8").splitlines()) < 40
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed
    page = WRITES[path.stem]
    assert page is None or (tmp_path / page).is_file()
    if page is not None:
        assert page in printed or path.stem == "own_ranking"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_its_one_argument_is_the_model(path, monkeypatch):
    names = []

    def load(name):
        names.append(name)
        raise InterruptedError

    monkeypatch.setattr(vlmflow, "load", load)
    monkeypatch.setattr(sys, "argv", [str(path), "owner/model"])
    with pytest.raises(InterruptedError):
        runpy.run_path(str(path), run_name="__main__")
    assert names == ["owner/model"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    """But for what ``cut_short`` says."""
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep notebooks without outputs"
    assert not any(cell.get("execution_count") for cell in notebook.cells)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(CUT_SHORT))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert "text/html" in shown  # a result shows itself
    assert "image/png" in shown


def test_there_are_three_notebooks_and_every_script_is_known():
    assert len(NOTEBOOKS) == 3
    assert {path.stem for path in SCRIPTS} == set(WRITES)


def test_the_study_of_the_examples_is_a_plan():
    plan = Plan.from_mapping(yaml.safe_load((EXAMPLES / "study.yaml").read_text("utf-8")))
    truncations = [arm for arm in plan.arms(12) if arm.kind == "truncation"]
    assert len(truncations) == 18
