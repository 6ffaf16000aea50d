"""What lmms-eval's registry finds by the entry point ``vlmflow``."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's manifest of the model; lmms-eval is imported only here and in it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vlmflow", chat_class_path="vlmflow.lmms_eval_model.model.Vlmflow")
