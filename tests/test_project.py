"""What people who join find: workflows and forms that fit the code, a wheel that runs alone."""

from __future__ import annotations

import importlib
import os
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vlmflow import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PROJECT["project"]
    path = PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{__version__}"' in (ROOT / path).read_text("utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text("utf-8"))["jobs"]


def commands_of(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_covers_what_is_declared(jobs):
    assert set(jobs) == {"lint", "tests", "transformers", "docs", "lmms-eval", "build"}
    pythons = jobs["tests"]["strategy"]["matrix"]["python"]
    declared = SpecifierSet(PROJECT["project"]["requires-python"])
    assert [minor for minor in range(5, 15) if declared.contains(f"3.{minor}")] == [
        int(version.removeprefix("3.")) for version in pythons
    ]
    (transformers,) = (
        requirement
        for requirement in map(Requirement, PROJECT["project"]["dependencies"])
        if requirement.name == "transformers"
    )
    lowest = next(bound.version for bound in transformers.specifier if bound.operator == ">=")
    oldest, newest = (
        row["version"] for row in jobs["transformers"]["strategy"]["matrix"]["include"]
    )
    assert oldest == f"=={lowest}.0"
    assert SpecifierSet(newest) == transformers.specifier


def test_every_command_of_the_workflow_exists(jobs):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for job in jobs.values():
        assert job["timeout-minutes"] <= 60
        for command in commands_of(job):
            program, *words = command.split()
            if program == "make":
                assert words[0] in targets or words[0] == ".venv/.installed-test", command
    assert any("vlmflow demo" in command for command in commands_of(jobs["build"]))


def test_what_other_programs_find_by_entry_points_is_there():
    (group,) = PROJECT["project"]["entry-points"].items()
    name, points = group
    assert name == "lmms_eval.models"
    assert list(points) == ["vlmflow"]
    module, _, attribute = points["vlmflow"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_forms_ask_for_what_vlmflow_env_prints():
    forms = {
        path.stem: yaml.safe_load(path.read_text("utf-8"))
        for path in FORMS.glob("*.yml")
        if path.stem != "config"
    }
    assert len(forms) >= 3
    for name in ("problem", "family"):
        (asked,) = (part for part in forms[name]["body"] if part.get("id") == "env")
        assert "`vlmflow env`" in asked["attributes"]["label"]
        assert asked["validations"]["required"]
    for form in forms.values():
        assert form["name"]
        assert form["description"]
        assert all(part["attributes"]["label"] for part in form["body"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of this clone."""
    pytest.importorskip("hatchling", reason="a wheel is built by hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_a_wheel_in_a_fresh_environment_runs_the_demo(built, tmp_path):
    """Its dependencies are this environment's; the package is the wheel's alone."""
    wheel, _ = built
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=False)
    scripts = fresh / ("Scripts" if os.name == "nt" else "bin")
    install = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    quietly = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*install, *quietly, str(wheel)], check=True, timeout=120)
    packages = next(fresh.glob("[lL]ib/**/site-packages"))
    # Added as plain paths: what makes this clone importable, a .pth file in them, is not read.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(scripts / command[0]), *command[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-c", "import vlmflow; print(vlmflow.__file__)")
    assert Path(where.strip()).is_relative_to(fresh)
    assert run("vlmflow", "--version") == f"vlmflow {__version__}\n"
    assert "demo" in run("vlmflow", "demo", "--out", "demo")
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000


def test_wheel_and_sdist_hold_what_they_should(built):
    wheel, sdist = built
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "src").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT / "src").as_posix() in names
    assert {name.split("/")[0] for name in names} == {
        "vlmflow",
        f"vlmflow-{__version__}.dist-info",
    }
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = (
        "mkdocs.yml",
        "SECURITY.md",
        "docsite/build.py",
        "docs/index.md",
        "tests/test_docs.py",
    )
    assert inside >= {*needed, "examples/explain.py", ".github/workflows/checks.yml", "Makefile"}
    assert not [name for name in inside if "__pycache__" in name or name.startswith("build/")]
