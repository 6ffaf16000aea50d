"""The table of model types says what the tests of the families show."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlmflow import cli
from vlmflow.errors import ModelError
from vlmflow.lvlm.families import FAMILIES as REGISTERED
from vlmflow.lvlm.families.table import SUPPORTED, markdown
from vlmflow.truncation import Truncation

from .families import FAMILIES, SIZES, picture

DOCS = Path(__file__).resolve().parents[1] / "docs" / "families.md"
ROWS = {one.model_type: one for one in SUPPORTED}


def test_every_claimed_type_has_one_row():
    claimed = [model_type for family in REGISTERED for model_type in family.model_types]
    assert sorted(claimed) == sorted(ROWS)
    assert len(SUPPORTED) == len(ROWS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_row_says_what_its_model_does(family):
    row, vlm = ROWS[family.model_type], family.lvlm()
    prepared = vlm.prepare([picture(1, SIZES[0])], "What colour is the circle?")
    assert bool(prepared.layout.grids) == (not row.no_map)
    kinds = {grid.kind for grid in prepared.layout.grids}
    if "tiles" in row.grids and len(kinds) > 1:
        assert kinds == {"tiles", "thumbnail"}
    policy = Truncation(1, 0)
    if row.no_truncation:
        with pytest.raises(ModelError, match="past its own forward"):
            vlm.generate_ids(prepared, max_new_tokens=2, truncation=policy)
    else:
        vlm.generate_ids(prepared, max_new_tokens=2, truncation=policy)


def test_docs_and_command_show_the_table():
    assert markdown() in DOCS.read_text("utf-8")
    told = CliRunner().invoke(cli.app, ["models"])
    assert told.exit_code == 0
    for one in SUPPORTED:
        assert f"{one.model_type} " in told.output
        assert one.example in told.output
