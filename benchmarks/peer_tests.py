"""transformers' own tests of generation, untouched and inside a truncation that keeps everything.

    python benchmarks/peer_tests.py CHECKOUT [-k EXPRESSION] [MODEL_TYPE ...]

``CHECKOUT`` is a clone of transformers at the version that is installed, with what its tests need
(``pip install parameterized``). Every test that passes untouched must pass when each call of a
vision-language model, and of its ``generate``, is wrapped in ``Truncation(layer=1, keep=1.0)``.
Refusals of what a truncation cannot do are counted apart, each with its sentence. Exits with 1 if
a test gives another result.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import transformers
from transformers import GenerationMixin, PreTrainedModel

from vlmflow.lvlm.families.registry import families_by_type
from vlmflow.lvlm.families.table import SUPPORTED
from vlmflow.truncation import Truncation

KEEP_ALL = Truncation(layer=1, keep=1.0)
REFUSED = re.compile(r"vlmflow\.errors\.(?:InputError|ModelError): (.*)")


def pytest_configure() -> None:
    """Wrap every call from now on: this file is the plugin of the second run, too."""
    running: set[int] = set()

    def inside(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(model: Any, *args: Any, **kwargs: Any) -> Any:
            whole = isinstance(model, GenerationMixin) and isinstance(model, PreTrainedModel)
            if (
                id(model) in running
                or not whole
                or model.config.model_type not in families_by_type()
            ):
                return method(model, *args, **kwargs)
            running.add(id(model))
            try:
                with KEEP_ALL(model):
                    # By name: within a block the model's own generate is watched.
                    if method.__name__ == "generate":
                        return model.generate(*args, **kwargs)
                    return method(model, *args, **kwargs)
            finally:
                running.discard(id(model))

        return wrapped

    GenerationMixin.generate = inside(GenerationMixin.generate)  # type: ignore[method-assign]
    PreTrainedModel.__call__ = inside(PreTrainedModel.__call__)  # type: ignore[method-assign]


def outcomes(checkout: Path, files: list[str], expression: str, *, wrapped: bool) -> dict[str, str]:
    """Run the tests once: "", "skipped", or what made each one fail."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        here = Path(__file__).resolve().parent
        path = os.pathsep.join([str(here), str(checkout), os.environ.get("PYTHONPATH", "")])
        plugin = ["-p", Path(__file__).stem] if wrapped else []
        command = [sys.executable, "-m", "pytest", "-q", "-k", expression, f"--junitxml={report}"]
        subprocess.run(
            [*command, *plugin, *files], cwd=checkout, env={**os.environ, "PYTHONPATH": path},
            check=False, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if not report.exists():
            raise SystemExit(f"pytest did not run in {str(checkout)!r}: {' '.join(command)}")
        results = {}
        for case in ElementTree.parse(report).iter("testcase"):
            failure = next((part for part in case if part.tag in ("failure", "error")), None)
            text = "" if failure is None else f"{failure.get('message')}\n{failure.text}"
            if any(part.tag == "skipped" for part in case):
                text = "skipped"
            results[f"{case.get('classname')}::{case.get('name')}"] = text
        return results


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("types", nargs="*", default=[kind.model_type for kind in SUPPORTED])
    parser.add_argument("-k", default="generat or beam or greedy or sample or assisted or cache")
    given = parser.parse_args()
    files = [
        str(path.relative_to(given.checkout))
        for kind in given.types
        for path in sorted(
            given.checkout.glob(f"tests/models/{kind.replace('-', '_')}/test_modeling_*.py")
        )
    ]
    if not files:
        parser.error(f"{str(given.checkout)!r} holds no tests/models/TYPE/test_modeling_*.py")
    untouched = outcomes(given.checkout, files, given.k, wrapped=False)
    truncated = outcomes(given.checkout, files, given.k, wrapped=True)
    passed = [name for name, text in untouched.items() if text == ""]
    failed = {name: truncated.get(name, "it did not run") for name in passed}
    failed = {name: text for name, text in failed.items() if text}
    refused = {name: found[1] for name, text in failed.items() if (found := REFUSED.search(text))}
    differ = {name: text for name, text in failed.items() if name not in refused}
    print(f"transformers {transformers.__version__}, {len(files)} files, -k {given.k!r}")
    print(f"{len(passed)} of {len(untouched)} tests pass untouched; of these, truncated:")
    print(f"  {len(passed) - len(failed)} pass, {len(refused)} are refused, {len(differ)} differ")
    for sentence, count in Counter(refused.values()).most_common():
        print(f"  refused {count}x: {sentence}")
    for name, text in differ.items():
        print(f"  differs: {name}: {text.splitlines()[0]}")
    return 1 if differ or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
