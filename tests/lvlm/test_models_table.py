"""The table of model types says what the tests of the families show."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.families import FAMILIES, SIZES, picture
from tests.support.tiny import tiny_llava
from vlmflow import LVLM, cli
from vlmflow.lvlm.families import FAMILIES as REGISTERED
from vlmflow.lvlm.families import unregister_family
from vlmflow.lvlm.families.registry import GROUP
from vlmflow.lvlm.families.table import SUPPORTED, markdown
from vlmflow.truncation import Truncation
from vlmflow.truncation.amounts import amount

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "families.md"
WORKED = ROOT / "docs" / "adding-a-family.md"
ROWS = {row.model_type: row for row in SUPPORTED}


def test_every_claimed_type_has_one_row():
    claimed = [model_type for family in REGISTERED for model_type in family.model_types]
    assert sorted(claimed) == sorted(ROWS)
    assert len(SUPPORTED) == len(ROWS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_row_says_what_its_model_does(family):
    row, vlm = ROWS[family.model_type], family.lvlm()
    prompt = vlm.prepare([picture(1, SIZES[0])], "What colour is the circle?")
    flow = vlm.explain([picture(1, SIZES[0])], "What colour is the circle?", "red")
    assert flow.layout.grids
    assert bool(prompt.layout.grids) == (not family.queries)
    kinds = {grid.kind for grid in prompt.layout.grids}
    if "tiles" in row.grids and len(kinds) > 1:
        assert kinds == {"tiles", "thumbnail"}
    vlm.generate_ids(prompt, max_new_tokens=2, truncation=Truncation(1, 0))


def test_docs_and_command_show_the_table():
    assert markdown() in DOCS.read_text("utf-8")
    result = CliRunner().invoke(cli.app, ["models"])
    assert result.exit_code == 0
    for row in SUPPORTED:
        assert f"{row.model_type} " in result.output
        assert row.example in result.output


BLOCK = re.compile(r"^(?:`([^`\n]+)`\n\n)?```(\w+)\n(.*?\n)```$", re.M | re.S)


def test_the_worked_example_is_what_stands_in_the_repository():
    """Every block below a path in docs/adding-a-family.md is in that file; families are whole."""
    page = WORKED.read_text("utf-8")
    blocks = [(path, block) for path, _, block in BLOCK.findall(page) if path]
    for path, block in blocks:
        text = (ROOT / path).read_text("utf-8")
        assert f"\n{block}" in f"\n{text}", (
            f"{path} no longer reads as docs/adding-a-family.md says"
        )
    families = "src/vlmflow/lvlm/families"
    for name in ("deepseek_vl", "paligemma"):
        path = f"{families}/{name}.py"
        assert (path, (ROOT / path).read_text("utf-8")) in blocks
    assert {path for path, _ in blocks} == {
        f"{families}/deepseek_vl.py",
        f"{families}/paligemma.py",
        f"{families}/built_in.py",
        f"{families}/table.py",
        "docs/families.md",
        "tests/support/tiny_square.py",
        "tests/support/families.py",
    }
    # Nothing stands outside of a block that this test or the next one checks, but what is run in a
    # shell.
    assert len(re.findall(r"^```", page, re.M)) == 2 * len(BLOCK.findall(page))
    kinds = {kind for path, kind, _ in BLOCK.findall(page) if not path}
    assert kinds == {"python", "toml", "console"}
    for path in re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", page):
        assert (ROOT / path).is_file(), path


def test_the_notebook_cells_of_the_worked_example_run():
    page = WORKED.read_text("utf-8")
    model, processor = tiny_llava(tower="siglip")
    model.config.model_type = "my_model_type"
    names = {"model": model, "processor": processor, "picture": picture(1, SIZES[0])}
    try:
        for path, kind, block in BLOCK.findall(page):
            if not path and kind == "python":
                exec(block, names)
    finally:
        unregister_family("my_model_type")
    # What LLaVA's own family says of the very same model.
    (expected,) = LVLM(*tiny_llava(tower="siglip")).prepare(names["picture"], "?").layout.grids
    (grid,) = names["flow"].layout.grids
    np.testing.assert_allclose(grid.boxes, expected.boxes, atol=1e-12)
    assert names["curve"].keep == amount(4)
    assert f'[project.entry-points."{GROUP}"]' in page
