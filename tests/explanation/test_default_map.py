"""The default map is named in one place, and everything that shows one map shows that one."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import vlmflow
from tests.support.app_server import running_app
from tests.support.number_format import QUICK, QUICKLY
from vlmflow import cli
from vlmflow.app.pictures import SAMPLE_NAMES, sample_picture
from vlmflow.cli.trust import trust as trust_command
from vlmflow.errors import InputError
from vlmflow.flow.signals.registry import DEFAULT_SIGNAL, DEFAULT_SIGNALS, SIGNALS
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.verdict import verdict

SOURCE = Path(vlmflow.__file__).parent
BEFORE = ("attention", "saliency", "flow_map", "llava_cam")
"""What results of earlier versions hold."""


@pytest.fixture(scope="module")
def vlm():
    return vlmflow.load("scenes-llava", dtype=QUICK)


@pytest.fixture(scope="module")
def asked():
    return vlmflow.sample("scenes-reading", index=3)


@pytest.fixture(scope="module")
def flow(vlm, asked):
    return vlm.explain(*asked, trust=True)


@pytest.fixture(scope="module")
def old(vlm, asked, tmp_path_factory):
    """A result with the maps of earlier versions, saved and read again."""
    measured = vlm.explain(*asked, signals=BEFORE, trust=True)
    return InformationFlow.load(measured.save(tmp_path_factory.mktemp("old")))


def head_of(page: str) -> dict:
    (text,) = re.findall(r'id="head"[^>]*>(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def page_of(flow, path):
    return Path(vlmflow.report(flow, path)).read_text("utf-8")


def label_of(signal: str) -> str:
    return SIGNALS.read(signal).shown_as()


def test_it_is_named_in_one_place():
    """No other code names it, or the map that it replaced: what is shown follows the constant."""
    assert DEFAULT_SIGNAL in DEFAULT_SIGNALS
    own = {SOURCE / "flow/signals" / f"{name}.py" for name in (DEFAULT_SIGNAL, "flow_map")}
    naming = [
        (path.relative_to(SOURCE), node.lineno, node.value)
        for path in sorted(SOURCE.rglob("*.py"))
        if path not in own
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in (DEFAULT_SIGNAL, "flow_map")
    ]
    registry = Path("flow/signals/registry.py")
    assert [(path, value) for path, _, value in naming] == [
        (registry, DEFAULT_SIGNAL),
        (registry, "flow_map"),
    ]
    for path in (SOURCE / "reports/templates").glob("*"):
        assert DEFAULT_SIGNAL not in path.read_text("utf-8"), path


def test_it_has_no_layer_to_choose_and_comes_first_of_those():
    summed = [name for name in DEFAULT_SIGNALS if SIGNALS.read(name).summed]
    assert summed == [DEFAULT_SIGNAL, "flow_map"]


def test_page_headline_notebook_and_trust_agree(flow, tmp_path):
    label = label_of(DEFAULT_SIGNAL)
    page = page_of(flow, tmp_path / "report.html")
    assert head_of(page)["shown"] == DEFAULT_SIGNAL
    for target in range(len(flow.targets)):
        assert f" of the {label} " in verdict(flow, target).headline
    assert "of the image tokens hold " in page
    assert f" of the {label}." in page
    assert f"{label}, summed over layers" in flow._repr_html_()
    (tested,) = flow.trust
    assert (tested.signal, tested.layer, tested.about.label) == (DEFAULT_SIGNAL, None, label)


def test_the_headline_speaks_of_the_map_that_is_tested_and_shown(flow):
    """Its half of the map is half of the default map, and of no other one."""
    reading = verdict(flow).reading
    x0, y0, x1, y1 = (round(edge) for edge in reading.box)
    values = np.nan_to_num(flow.pixel_map(DEFAULT_SIGNAL))
    assert values[y0:y1, x0:x1].sum() / values.sum() == pytest.approx(reading.mass, abs=0.02)
    other = np.nan_to_num(flow.pixel_map("flow_map"))
    assert other[y0:y1, x0:x1].sum() / other.sum() != pytest.approx(reading.mass, abs=0.02)


def test_trust_takes_the_map_that_the_result_is_shown_with(vlm, flow, old):
    for result, signal in ((flow, DEFAULT_SIGNAL), (old, "flow_map")):
        tested = vlm.trust(result, steps=2)
        assert (tested.signal, tested.layer) == (signal, None)
        named = vlm.trust(result, signal, steps=2)
        np.testing.assert_array_equal(tested.curves.insertion, named.curves.insertion)
    assert vlm.trust(flow, target=2, steps=2).target == 2
    with pytest.raises(InputError, match="layer=4 of which signal"):
        vlm.trust(flow, layer=4)
    with pytest.raises(InputError, match="target=9"):
        vlm.trust(flow, target=9)


def test_the_command_line_agrees(tmp_path, asked):
    assert inspect.signature(trust_command).parameters["signal"].default == DEFAULT_SIGNAL
    picture, question = asked
    path = tmp_path / "picture.png"
    picture.save(path)
    run = [str(path), question, *QUICKLY]
    said = CliRunner().invoke(cli.app, ["trust", *run, "--steps", "2", "--json"])
    assert json.loads(said.stdout)["signal"] == DEFAULT_SIGNAL
    out = tmp_path / "out"
    said = CliRunner().invoke(cli.app, ["explain", *run, "--trust", "--out", str(out)])
    assert said.exit_code == 0, said.output
    result = InformationFlow.load(out)
    assert result.signals == DEFAULT_SIGNALS
    assert result.trust[0].signal == DEFAULT_SIGNAL
    assert head_of((out / "report.html").read_text("utf-8"))["shown"] == DEFAULT_SIGNAL


def test_the_app_agrees():
    name = SAMPLE_NAMES[0]
    with running_app() as app:
        answer = app.ask(sample_picture(name)[1], name)["answer"]
        page = app.get(f"/answers/{answer}/report.html").text
    assert head_of(page)["shown"] == DEFAULT_SIGNAL


def test_results_of_earlier_versions_show_the_map_they_were_made_with(old, tmp_path):
    label = label_of("flow_map")
    page = page_of(old, tmp_path / "report.html")
    assert head_of(page)["shown"] == "flow_map"
    assert f" of the {label} " in verdict(old).headline
    assert f" of the {label}." in page
    assert f"{label}, summed over layers" in old._repr_html_()
    assert old.trust[0].signal == "flow_map"
    assert "The flow map ranks regions" in page


def test_the_order_of_named_signals_is_the_users(vlm, asked, tmp_path):
    for first, second in ((DEFAULT_SIGNAL, "flow_map"), ("flow_map", DEFAULT_SIGNAL)):
        flow = vlm.explain(*asked, signals=["attention", first, second], per_token=False)
        assert head_of(page_of(flow, tmp_path / "report.html"))["shown"] == first
        assert f" of the {label_of(first)} " in verdict(flow).headline


def test_where_it_is_empty_the_next_map_stands_in_everywhere(flow, tmp_path):
    flags = {**flow.flags, DEFAULT_SIGNAL: np.full_like(flow.flags[DEFAULT_SIGNAL], 2)}
    maps = {**flow.maps, DEFAULT_SIGNAL: np.zeros_like(flow.maps[DEFAULT_SIGNAL])}
    bare = dataclasses.replace(flow, flags=flags, maps=maps, trust=())
    page = page_of(bare, tmp_path / "report.html")
    assert head_of(page)["shown"] == "flow_map"
    assert " of the flow map " in verdict(bare).headline
    assert " of the flow map." in page
    assert "flow map, summed over layers" in bare._repr_html_()
