"""Models on SmolLM2: the mark of tests that need its weights."""

from __future__ import annotations

import pytest

from vlmflow.bundled.smollm2 import find_weights
from vlmflow.errors import ModelError


def _missing() -> str:
    try:
        find_weights()
    except ModelError as error:
        return str(error)
    return ""


needs_smollm2 = pytest.mark.skipif(bool(_missing()), reason=_missing())
on_smollm2, on_smolvlm = (
    pytest.param(name, marks=needs_smollm2) for name in ("scenes-smollm2", "scenes-smolvlm")
)
BUNDLED_MODELS = ("scenes-llava", on_smollm2, on_smolvlm)
"""Every bundled model, for ``pytest.mark.parametrize``."""
