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
on_smollm2 = pytest.param("scenes-smollm2", marks=needs_smollm2)
BUNDLED_MODELS = ("scenes-llava", on_smollm2)
"""Every bundled model, for ``pytest.mark.parametrize``."""
