"""What the pages on rankings and signals say holds: their code runs, their tables are whole."""

from __future__ import annotations

import gc
import linecache
import re
from pathlib import Path

import pytest

from vlmflow.flow.signals.answer_view import AnswerView
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.registry import RANKINGS

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?\n)```$", re.M | re.S)
PAGES = {
    "your-own-ranking": ((Candidates,), RANKINGS),
    "your-own-signal": ((LayerView, AnswerView), SIGNALS),
}
WHO_LOOKS = {"ranking", "signal", "name", "reads", "rows"}
"""Fields that hold what a class declared: it need not ask."""


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    """All blocks in order, in one namespace, as cells of a notebook."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"docs_{name}"}
    blocks = BLOCK.findall((DOCS / f"{name}.md").read_text("utf-8"))
    assert {kind for kind, _ in blocks} == {"python", "toml"}
    for number, (kind, block) in enumerate(blocks):
        if kind == "python":
            file = f"<docs/{name}.md, block {number}>"
            exec(in_notebook(block, file), names)
    forget(names)


def forget(names: dict[str, object]) -> None:
    """Let go of the classes that blocks defined: pages may call theirs alike."""
    names.clear()
    gc.collect()


def in_notebook(block: str, file: str):
    """Compile a block as IPython does: its source is kept in linecache."""
    linecache.cache[file] = (len(block), None, block.splitlines(keepends=True), file)
    return compile(block, file, "exec", dont_inherit=True)


@pytest.mark.parametrize("name", PAGES)
def test_the_table_of_attributes_is_whole(name):
    views, _ = PAGES[name]
    documented = set(
        re.findall(r"^\| `seen\.(\w+)", (DOCS / f"{name}.md").read_text("utf-8"), re.M)
    )
    has = {name for view in views for name in (*view.__annotations__, *vars(view))}
    public = {attribute for attribute in has if not attribute.startswith("_")}
    assert documented == public - WHO_LOOKS


@pytest.mark.parametrize("name", PAGES)
def test_the_entry_point_of_a_page_is_the_registrys(name):
    _, registry = PAGES[name]
    page = (DOCS / f"{name}.md").read_text("utf-8")
    assert re.findall(r"^\[project.entry-points.\"(.*)\"\]$", page, re.M) == [registry.group]
