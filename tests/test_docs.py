"""What the pages of docs/ say holds: their code runs, their commands exist, their tables are whole.

Every block of every page is run, as cells of one notebook and lines of one shell, in a directory
with the sample files. Models of the hub are stood in for by a bundled one, and studies are cut
short. A block below a comment "not run: REASON" is not; the reason is one of REASONS, and it is
looked up whether it holds.
"""

from __future__ import annotations

import gc
import itertools
import json
import linecache
import re
import shlex
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from transformers import AutoConfig
from typer.testing import CliRunner

import vlmflow
from tests.support.clips import clip
from tests.support.cut_short import cut_short
from tests.support.lmms_logs import logged
from tests.support.number_format import QUICK
from tests.support.tiny import tiny_llava
from tests.support.tiny_video import named, video
from vlmflow import cli
from vlmflow.bundled.shelf import bundled_directory
from vlmflow.flow.signals.answer_view import AnswerView
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.lvlm.families import family_of
from vlmflow.studies.certification.settings import CertifySettings
from vlmflow.tasks.registry import known_tasks
from vlmflow.truncation.rankings.candidates import Candidates
from vlmflow.truncation.rankings.registry import RANKINGS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?\n)```$", re.M | re.S)
MARKED = re.compile(r"^(?:<!-- not run: ([^\n]*) -->\n)?```(\w+)\n(.*?\n)```$", re.M | re.S)
INLINE = re.compile(r"`(vlmflow [a-z]+(?: [^`]*)?)`")

ELSEWHERE = {"adding-a-family": "tests/lvlm/test_models_table.py"}
"""Pages that a test of their own reads, block by block."""

RUN = {"python", "console", "bash"}
"""Kinds of blocks that are run; others are files of other projects."""

STAND_IN = re.compile(r"\b[\w.-]+/[\w.-]+-hf\b|\bscenes-smollm2\b")
"""Models in whose place stands ``scenes-llava``."""

IN_FILE = re.compile(r"# (\S+\.yaml)\n")
"""First line of a block of YAML that a command of the page reads."""

FEW = {
    "certify": shlex.split(
        "--risk 0.5 --calibration 10 --samples 1 --timed 0 --layer 11 --keep 0 "
        "--signals image_attention"
    ),
    "cliff": ["--samples", "1", "--calibration", "1"],
    "compare": ["--samples", "1", "--timed", "0", "--keep", "0.25"],
    "study": ["--samples", "1", "--calibration", "1", "--timed", "0"],
    "export-policy": ["--samples", "1"],
    "faithfulness": [
        *("--samples", "1", "--calibration", "1", "--signals", "attention", "--layer", "3"),
        *("--sanity", "0", "--timed", "0", "--steps", "2"),
    ],
    "trust": ["--steps", "2"],
}
"""What keeps a command short; everything else is the page's."""

FEW_SAMPLES = "samples=1, calibration=1"

SHORTER = {
    "certify": {
        "risk=0.05, confidence=0.9": "settings=few",
        "signals=[Settled()]": "signals=[Settled()], settings=few",
    },
    "compare-rankings": {
        '[Contrast(), "all"], task="scenes-reasoning", layer=2, keep=(0.5, 0.25, 0.1)': (
            '[Contrast(), "diversity"], task="scenes-reasoning", layer=2, samples=2, timed=0'
        )
    },
    "faithfulness": {
        'signals="all", samples=100': (
            'signals=["attention"], samples=1, calibration=1, layers=[3], sanity=0, timed=0, '
            "steps=2"
        )
    },
    "certify-a-truncation": {"risk=0.05": "settings=few"},
    "choose-a-truncation": {'out="study-2"': f'out="study-2", {FEW_SAMPLES}, timed=0'},
    "explain-many-answers": {"samples=3": "samples=1", "samples=2": "samples=1"},
    "find-the-cliff": {'out="cliff-2"': f'out="cliff-2", {FEW_SAMPLES}'},
    "report": {"steps=64": "steps=2"},
    "videos": {"steps=8": "steps=2"},
    "tasks": {"answers = [...]": 'answers = ["yes"] * len(samples)'},
}
"""What is put into a page's Python in place of what takes long, or of an ellipsis."""

HUB_TASKS = {entry.name for entry in known_tasks() if entry.hub}


def _resolution_is_fixed(name: str) -> bool:
    config = AutoConfig.from_pretrained(bundled_directory(name))
    return family_of(config.model_type).image_settings(None, config, 64) is None


REASONS: dict[str, Callable[[str], bool]] = {
    "it reads a data set of the hub": lambda block: bool(
        HUB_TASKS & set(re.findall(r"[\w-]+", block))
    ),
    "it starts Ray": lambda block: all("--workers ray" in line for line in block.splitlines()),
    "no bundled model's resolution can be chosen": lambda block: (
        "vlmflow.budget(" in block and _resolution_is_fixed("scenes-llava")
    ),
    "it installs": lambda block: all(line.startswith("pip ") for line in block.splitlines()),
    # tests/app/test_ends.py starts it and stops it.
    "it serves until it is stopped": lambda block: all(
        line.startswith("vlmflow app") for line in block.splitlines()
    ),
}
"""Why a block is not run, and whether that is so."""

PAGES = {
    "your-own-ranking": ((Candidates,), RANKINGS),
    "your-own-signal": ((LayerView, AnswerView), SIGNALS),
}
WHO_LOOKS = {"ranking", "signal", "name", "reads", "rows"}
"""Fields that hold what a class declared: it need not ask."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({path.stem for path in DOCS.glob("*.md")} - {*ELSEWHERE}))
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch):
    """All blocks in order, in one namespace and one directory."""
    page = (DOCS / f"{name}.md").read_text("utf-8")
    assert len(re.findall(r"^```", page, re.M)) == 2 * len(MARKED.findall(page))
    assert page.count("<!-- not run") == sum(bool(reason) for reason, *_ in MARKED.findall(page))
    names: dict[str, Any] = {"__name__": f"docs_{name}"}
    prepare(name, names, tmp_path, monkeypatch)
    left = dict(SHORTER.get(name, {}))
    for number, (reason, kind, block) in enumerate(MARKED.findall(page)):
        file = f"<docs/{name}.md, block {number}>"
        if reason:
            assert REASONS[reason](block), f"{file} is not run because {reason}, which is not so"
        if kind == "python":
            for old in [old for old in left if old in block]:
                block = block.replace(old, left.pop(old))
            code = in_notebook(STAND_IN.sub("scenes-llava", block), file)
            if not reason:
                exec(code, names)
        elif kind == "yaml" and (file_name := IN_FILE.match(block)):
            Path(file_name[1]).write_text(block, "utf-8")
        elif kind in RUN:
            for line in block.splitlines():
                check_command(line)
                if not reason:
                    run(line)
    assert not left, f"docs/{name}.md no longer says {left}"
    forget(names)


def prepare(name: str, names: dict[str, Any], folder: Path, monkeypatch: Any) -> None:
    """Put files and names there that a page takes to be there."""
    monkeypatch.chdir(folder)
    cut_short(monkeypatch)
    text = (DOCS / f"{name}.md").read_text("utf-8")
    assert CliRunner().invoke(cli.app, ["sample", "--out", "."]).exit_code == 0
    shutil.copy("questions.jsonl", "my-questions.jsonl")
    shutil.copytree(ROOT / "examples", "examples")
    if name == "studies":  # one truncation of the example's eighteen
        example = Path("examples/study.yaml")
        settings = yaml.safe_load(example.read_text("utf-8"))
        settings["truncations"] = settings["truncations"][:1]
        del settings["sweep"]
        example.write_text(yaml.safe_dump(settings), "utf-8")
    if name == "faithfulness":
        names |= {"vlmflow": vlmflow, "vlm": vlmflow.load("scenes-llava", dtype=QUICK)}
    if name.startswith("certify"):
        names["few"] = CertifySettings(
            risk=0.5, calibration=10, samples=1, layers=(11,), keeps=(0.0,), timed=0
        )
    if name == "certify":
        vlm = vlmflow.load("scenes-llava", dtype=QUICK)
        inputs = vlm.prepare("picture.png", "What is it?").inputs
        names |= {"vlmflow": vlmflow, "vlm": vlm, "model": vlm.model, "inputs": inputs}
        names |= {"picture": "picture.png", "question": "What is it?"}
    if name == "truncation":
        model, processor = tiny_llava(layers=18)
        inputs = vlmflow.LVLM(model, processor).prepare("picture.png", "What is it?").inputs
        names |= {"model": model, "inputs": inputs}
    if name == "videos":
        assert "Qwen/Qwen2.5-VL-3B-Instruct" in text
        monkeypatch.setattr(vlmflow, "load", lambda *_, **__: named("qwen2_5_vl").lvlm())
        for number, frame in enumerate(video(4).frames):
            frame.save(f"{number}.png")
        clip(Path("clip.mp4"))
        row = {"video": "clip.mp4", "question": "What is it?", "answer": "red"}
        Path("clips.jsonl").write_text(3 * (json.dumps(row) + "\n"), "utf-8")
    if name == "tasks":
        copy_of_pope(monkeypatch)
    if name == "reproduce":
        sizes_of_llava(monkeypatch)
    if name == "lmms-eval":
        for run, (arguments, right) in {
            "untouched": ("", 60),
            "half": ("layer=4,keep=0.5,rank_by=uniform", 59),
            "random": ("layer=4,keep=0.5,rank_by=random", 50),
            "blind": ("layer=0,keep=0", 9),
        }.items():
            given = f"pretrained=scenes-llava,{arguments}".rstrip(",")
            logged(Path("runs", run), given, right=right, count=60, task="my_task")


def sizes_of_llava(monkeypatch: Any) -> None:
    """Let the config of LLaVA-1.5-7B on the hub be its class's defaults, which are its sizes."""
    from transformers import LlavaConfig

    from vlmflow.lvlm import skeleton

    LlavaConfig().save_pretrained("llava-sizes")
    opened = skeleton.open_skeleton

    def open_sizes(name: str, revision: str | None = None) -> tuple[Any, Any]:
        assert (name, revision) == ("llava-hf/llava-1.5-7b-hf", None)
        return opened("llava-sizes")

    monkeypatch.setattr(skeleton, "open_skeleton", open_sizes)


def copy_of_pope(monkeypatch: Any) -> None:
    """Let the page's data set be read from a directory beside it."""
    pytest.importorskip("datasets", reason="data sets of the hub are read by datasets")
    from tests.support.hub_data import write
    from vlmflow.tasks import registry

    write("pope", Path("copy"))
    find = registry.find_task
    monkeypatch.setattr(registry, "find_task", lambda name: find(f"{name}@copy"))


def run(line: str) -> None:
    """Run one line of a shell, cut short."""
    program, *words = shlex.split(STAND_IN.sub("scenes-llava", line), comments=True)
    if program == "make":  # what .ci/run starts itself
        return
    assert program == "vlmflow", line
    out = words[words.index("--out") + 1] if "--out" in words else None
    few = [] if "--import" in words else FEW.get(words[0], [])
    if words[0] == "explain" and "--samples" in words:
        few = ["--samples", "1"]
    result = CliRunner().invoke(cli.app, [*words, *few])
    assert result.exit_code == 0, f"{line}\n{result.output}"
    assert result.stdout
    if out is not None:
        assert Path(out).is_file() or any(Path(out).iterdir())


def check_command(line: str) -> None:
    """See that there is a command of this name, with all options of these names."""
    program, *words = itertools.dropwhile(
        lambda word: re.match(r"[A-Z_]+=", word), shlex.split(line, comments=True)
    )
    if program == "pip":
        extras = set(re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", line))))
        assert extras <= set(metadata.metadata("vlmflow").get_all("Provides-Extra")), line
    if program != "vlmflow":
        return
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert words[0] in commands, line
    options = {
        name
        for parameter in commands[words[0]].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in {*options, "--help"}, f"{line}: there is no {word}"


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_commands_inside_of_sentences_exist(path):
    for line in INLINE.findall(path.read_text("utf-8").replace("\n", " ")):
        check_command(line)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_pages_that_are_left_out_have_a_test_of_their_own(name):
    text = (ROOT / ELSEWHERE[name]).read_text("utf-8")
    assert f'"{name}.md"' in text
    assert "exec(" in text


def test_a_wrong_reason_is_seen():
    assert not REASONS["it reads a data set of the hub"]("vlmflow cliff scenes-reading --out a")
    assert REASONS["it reads a data set of the hub"]("vlmflow study --task pope-adversarial")
    with pytest.raises(AssertionError, match="there is no --knocked"):
        check_command("vlmflow cliff scenes-reading --knocked --out result")
    with pytest.raises(AssertionError):
        check_command("vlmflow clif scenes-reading")


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
