"""One call writes the page of whatever was measured, another its figures."""

from __future__ import annotations

import pytest

import vlmflow
from tests.support.synthetic import synthetic_flow
from tests.support.synthetic_study import synthetic_study
from vlmflow.errors import InputError
from vlmflow.studies.truncations.plan import Plan


def results():
    plan = Plan("scenes-reasoning", truncations=("layer=2,keep=0",), samples=20, calibration=20)
    return {
        "flow": (synthetic_flow(layers=3), "segments"),
        "study": (synthetic_study(plan, lambda arm, split: 0.9), "study"),
    }


@pytest.mark.parametrize("kind", ["flow", "study"])
def test_pages_and_figures_of_a_result(tmp_path, kind):
    result, name = results()[kind]
    page = vlmflow.report(result, tmp_path / "new" / "page.html")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    files = vlmflow.figures(result, tmp_path / "figures")
    assert {f"{name}.png", f"{name}.pdf"} <= {path.name for path in files}
    assert sorted(files) == sorted((tmp_path / "figures").iterdir())
    for path in files:
        start = {".png": b"\x89PNG", ".pdf": b"%PDF"}[path.suffix]
        assert path.read_bytes().startswith(start)


def test_what_has_no_report_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="a dict has no report; give an InformationFlow"):
        vlmflow.report({}, tmp_path / "page.html")
    with pytest.raises(InputError, match="a dict has no report"):
        vlmflow.figures({}, tmp_path / "figures")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        vlmflow.report(synthetic_flow(layers=2), tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]
