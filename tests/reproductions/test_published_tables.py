"""Tables as data: whole, of known kinds, and every figure runs or says why it does not."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from typer.testing import CliRunner

from vlmflow import cli
from vlmflow.errors import InputError
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.reproductions.figures import CURVES, FIGURES
from vlmflow.reproductions.published import published_table, table_names
from vlmflow.reproductions.request import Request, read_sources
from vlmflow.tasks.hub.catalogue import CATALOGUE
from vlmflow.truncation.truncation import Truncation

TABLES = [published_table(name) for name in table_names()]
LLAVA = "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_is_whole(table):
    assert table.title
    assert table.paper
    assert table.where
    assert table.protocol
    assert table.differences
    models = {model.called: model for model in table.models}
    assert {figure.model for figure in table.figures} == set(models)
    assert {figure.data for figure in table.figures} == {data.task for data in table.data}
    for model in models.values():
        assert bool(model.hub) != bool(model.missing)
        if model.hub:
            assert model.layers
            assert model.image_tokens
            assert CONFIG_MAPPING[model.type] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    for data in table.data:
        assert bool(data.task in CATALOGUE) != bool(data.missing)
        assert data.missing or min(data.samples, data.text_tokens, data.answer_tokens) > 0


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_figure_runs_or_says_why_not(table):
    models = {model.called: model for model in table.models}
    untouched = {
        (figure.model, figure.data, figure.figure): figure.value
        for figure in table.figures
        if not figure.is_removal
    }
    seen = set()
    for figure in table.figures:
        key = dataclasses.replace(figure, value=0.0)
        assert table.why_not(figure) or key not in seen
        seen.add(key)
        assert figure.figure in (CURVES if figure.signal else FIGURES)
        if figure.is_removal:
            assert untouched[figure.model, figure.data, figure.figure] == figure.untouched
        if table.why_not(figure):
            continue
        if figure.is_removal:
            policy = Truncation.parse(figure.policy)
            policy.check_layers(models[figure.model].layers, figure.model)
        if figure.signal:
            assert figure.signal in SIGNALS.names()


def test_figures_are_those_of_the_papers():
    printed = {
        (table.name, figure.model, figure.data, figure.figure, figure.policy): figure.value
        for table in TABLES
        for figure in table.figures
        if not table.why_not(figure)
    }
    own = ("paper-table-1", "LLaVA1.5", "pope", "POPE F1")
    assert printed[(*own, "")] == 85.50
    assert printed[(*own, "layer=22,keep=0")] == 85.99
    no_image = ("paper-table-1", "LLaVA1.5", "scienceqa", "accuracy", "layer=0,keep=0")
    assert printed[no_image] == 47.5
    vtw = ("vtw-by-others", "LLaVA-1.5-7B", "vqav2", "VQA accuracy", "layer=16,keep=0")
    assert printed[vtw] == 66.3


def test_the_doubt_about_accuracy_and_f1_is_arithmetic():
    """On half yes and half no, an accuracy of 94.01 leaves F1 little room."""
    wrong = 1 - 0.9401
    only_missed, only_false = (0.5 - wrong, 0.5 - wrong), (0.5, 0.5 + wrong)  # right yes, said yes
    ends = [2 * right / (said + 0.5) for right, said in (only_missed, only_false)]
    assert [round(100 * end - 0.05, 1) for end in ends] == [93.6, 94.3]
    (doubt,) = [line for line in published_table("paper-table-1").doubts if "94.01" in line]
    assert "93.6 to 94.3" in doubt


def test_without_a_name_all_tables_are_listed():
    result = CliRunner().invoke(cli.app, ["reproduce"])
    assert result.exit_code == 0
    for table in TABLES:
        assert table.name in result.stdout
        assert table.title in result.stdout
    assert "PyramidDrop's main table" in result.stdout
    assert "16 of 49 figures run here" in result.stdout


def test_a_request_knows_the_models_and_data_sets_of_its_table():
    request = Request("paper-table-1")
    assert request.model_name == LLAVA
    assert [data.task for data in request.data] == ["scienceqa", "pope", "textvqa", "coco-caption"]
    assert request.policies(request.table.data_of("scienceqa")) == (
        "layer=12,keep=0", "layer=0,keep=0",
    )  # fmt: skip
    some = Request("paper-table-1", "a/copy", LLAVA, samples=50, only=("pope",))
    assert [(data.task, some.count(data)) for data in some.data] == [("pope", 50)]
    assert Request.from_json(some.to_json()) == some
    # Only the untouched model: where its tokens become redundant stands in a plot.
    other = Request("paper-table-1", "Salesforce/instructblip-vicuna-7b")
    assert not any(other.policies(data) for data in other.data)
    missing = {other.why_not(figure) for figure in other.figures}
    assert missing == {"", "the cliff layer stands only in a plot (Figure 5)"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"table_name": "table-9"}, "there is no table 'table-9'; there are eagle-coco"),
        ({"model": "Qwen-VL"}, "Qwen-VL runs on code of its own"),
        ({"model": "copies/llava"}, f"--as {LLAVA}"),
        ({"stands_for": "someone/else"}, "no model 'someone/else', only"),
        ({"only": ("mmmu",)}, "--only 'mmmu' is not a data set"),
        ({"only": ("pope", "pope")}, "names a data set twice"),
        ({"sources": (("gqa", "x"),)}, "--data 'gqa' is not a data set"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_what_a_table_does_not_have_is_refused(arguments, words):
    with pytest.raises(InputError, match=r".+") as error:
        Request(**{"table_name": "paper-table-1", **arguments})
    assert words in str(error.value)


def test_local_copies_are_named():
    assert read_sources(["pope=a/b", "gqa=c=d"]) == (("pope", "a/b"), ("gqa", "c=d"))
    for entry in ("pope", "pope=", "=a"):
        with pytest.raises(InputError, match="is not NAME=DIRECTORY"):
            read_sources([entry])
