"""What holds for the package as a whole: quick to import, versioned, typed, licensed, layered."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, requires, version
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vlmflow

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "vlmflow"
HEAVY = ("torch", "transformers", "matplotlib", "pandas")

ROOMS = (
    "errors",
    "version",
    "parameters",
    "extensions",
    "escape_invisible",
    "files",
    "notebook",
    "statistics",
    "bundled",
    "lvlm",
    "flow",
    "result",
    "truncation",
    "removal",
    "explanation",
    "trust",
    "scenes",
    "tasks",
    "serving",
    "lmms_eval_model",
    "studies",
    "reproductions",
    "reports",
    "model_api",
    "certification",
    "token_budget",
    "explained_tasks",
    "comparison",
    "imported_runs",
    "api",
    "__init__",
    "app",
    "cli",
    "__main__",
)
"""Rooms of the package from the ground up: none imports one that stands after it, be it inside a
function or for a type. Not every room has to be there."""

UPHILL: frozenset[str] = frozenset()
"""Imports of a higher room that are still to go. Nothing is added; what is gone leaves the list."""

CIRCLES: frozenset[tuple[str, ...]] = frozenset()
"""Circles of files that are still to go. Nothing is added; what is gone leaves the list."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )


SHOW_HELP = """
import runpy, sys
sys.argv = ["vlmflow", "--help"]
try:
    runpy.run_module("vlmflow", run_name="__main__")
except SystemExit:
    pass
"""


@pytest.mark.parametrize(("code", "most"), [("import vlmflow", 100), (SHOW_HELP, 300)])
def test_import_and_help_load_few_modules(code, most):
    """So that they take a fraction of a second: seconds themselves would measure a busy machine."""
    printed = python(f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))").stdout
    loaded = json.loads(printed.splitlines()[-1])
    assert len(loaded) <= most
    assert not set(HEAVY) & set(loaded)


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


def imports() -> dict[str, set[str]]:
    """Every module of the package, and the modules of it that its file names.

    Imports inside functions and under TYPE_CHECKING count as those at the top do. That Python runs
    the packages around a module, too, does not: what they offer is for the outside.
    """
    modules = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    named: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = []
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                targets += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relative to itself"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets.append(inner if inner in modules else node.module)
        named[module] = set(targets) & modules.keys() - {module}
    return named


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def circles(named: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Groups of modules of which each reaches every other."""
    reached: dict[str, set[str]] = {}
    for start in named:
        waiting, seen = [start], set()
        while waiting:
            new = named[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in named
        if module in reached[module]
    }


def test_every_room_has_its_place():
    assert {room(module) for module in imports()} <= set(ROOMS)
    assert len(set(ROOMS)) == len(ROOMS)


def test_lower_rooms_never_import_higher_ones():
    uphill = {
        f"{module} imports {target}"
        for module, targets in imports().items()
        for target in targets
        if ROOMS.index(room(target)) > ROOMS.index(room(module))
    }
    assert uphill == UPHILL


def test_no_files_import_each_other_in_a_circle():
    shortened = {
        tuple(module.removeprefix("vlmflow.") for module in circle) for circle in circles(imports())
    }
    assert shortened == CIRCLES


def test_circles_and_lazy_imports_are_seen():
    """Of a hand-made package: a circle of three, and one module that only looks at it."""
    named = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert circles(named) == {("a", "b", "c")}
    # Real ones: at the top, inside a function, and for a type.
    assert "vlmflow.explanation.explain" in imports()["vlmflow.model_api"]
    assert "vlmflow.api" in imports()["vlmflow"]
    assert "vlmflow.trust.controls" in imports()["vlmflow.cli.trust"]


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_no_function_takes_more_than_ten_parameters():
    """Commands and the front spell everything out for their users; all others take an object."""
    long = []
    for path, node in functions():
        names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([name for name in names if name.arg not in ("self", "cls")])
        if count > 10 and path.parent.name != "cli" and path.name not in ("api.py", "model_api.py"):
            long.append(f"{path.relative_to(ROOT)}: {node.name} takes {count}")
    assert long == []


def test_no_public_function_takes_options_of_any_kind():
    """A signature says what can be asked for; what transformers calls us with is its own."""
    vague = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, node in functions()
        if node.args.kwarg is not None
        and not node.name.startswith("_")
        and node.args.kwarg.arg not in ("_kwargs", "_options")
        and path.name != "notebook.py"  # the values of a template
        and ast.get_docstring(node) is not None
    ]
    assert vague == []


def test_no_file_has_more_than_four_hundred_lines():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length >= 400} == {}
