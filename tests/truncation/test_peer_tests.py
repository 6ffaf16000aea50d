"""``make peer-tests``, on a checkout of three tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = """
    import torch
    from tests.support.tiny import tiny_llava
    from tests.truncation.test_truncation import encode
    from vlmflow.truncation.cache import TruncatedLayer

    def answered(**options):
        model, processor = tiny_llava(1, layers=3)
        return model, model.generate(
            **encode(processor, [1], "What?"), max_new_tokens=3, min_new_tokens=3, **options
        )

    def test_generate_as_ever():
        assert answered()[1].shape[1] > 3

    def test_generate_in_chunks():
        answered(prefill_chunk_size=8)

    def test_generate_notices_the_truncation():
        model, answer = answered(return_dict_in_generate=True)
        assert not any(isinstance(layer, TruncatedLayer) for layer in answer.past_key_values.layers)

    def test_generate_fails_anyway():
        raise AssertionError
"""


def test_peer_tests_tell_passed_refused_and_different_results(tmp_path):
    folder = tmp_path / "tests" / "models" / "llava"
    folder.mkdir(parents=True)
    (folder / "test_modeling_llava.py").write_text(textwrap.dedent(CHECKOUT))
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "peer_tests.py", tmp_path, "llava"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    _, counts, shares, refused, differs = run.stdout.splitlines()
    assert counts == "3 of 4 tests pass untouched; of these, truncated:"
    assert shares == "  1 pass, 1 are refused, 1 differ"
    assert "prefill_chunk_size cannot be used under a truncation" in refused
    assert "test_generate_notices_the_truncation" in differs
