"""Put a model together from a pretrained decoder and what was trained for it, once.

The package holds what was trained: projector and low-rank adapters. The result is a plain
transformers directory in the user's cache, without adapters: their products are added to the
decoder's matrices.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vlmflow.bundled.smollm2 import SHA256, build_llava, find_weights
from vlmflow.errors import InputError, ModelError, Note
from vlmflow.files import staged

FORMAT = "1"
"""Of what is put together: another one where the same parts are put together differently."""

TOWERS = {"scenes-smollm2": "scenes-llava"}
"""The bundled model whose vision tower another one looks through, unchanged."""


def cache_directory() -> Path:
    """Where models are put together: ``VLMFLOW_CACHE``, else ``vlmflow`` in the user's cache."""
    own = os.environ.get("VLMFLOW_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "vlmflow"


def assembled(name: str, tuned: Path, bundled: Path) -> Path:
    """Return the directory of a model that was put together, after doing so where it is missing.

    Parameters
    ----------
    name
        Its bundled name.
    tuned
        What was trained for it.
    bundled
        Directory that holds the bundled models.

    Raises
    ------
    ModelError
        If what it stands on is missing or another file, or the cache cannot be written.
    """
    tower = bundled / TOWERS[name]
    parts = [FORMAT, SHA256, *(_digest(path) for path in (tuned, tower / "model.safetensors"))]
    mark = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
    directory = cache_directory() / "models" / f"{name}-{mark}"
    if (directory / "config.json").is_file():
        return directory
    weights_file = find_weights()
    warnings.warn(
        f"putting {name} together from {weights_file.name} and its adapters, once: {directory}",
        Note,
        stacklevel=2,
    )
    model: Any
    model, processor = build_llava()
    try:
        weights = load_file(tuned)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{tuned} is damaged ({error}); install vlmflow again") from error
    try:
        add_tuned(model, weights)
    # torch names a part or a shape that does not fit by errors without a common base.
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{tuned} does not fit {name} ({error}); install vlmflow again") from error
    donor: Any = LlavaForConditionalGeneration.from_pretrained(tower)
    model.model.vision_tower.load_state_dict(donor.model.vision_tower.state_dict())
    try:
        with staged(directory) as staging:
            model.to(torch.bfloat16).save_pretrained(staging)
            processor.save_pretrained(staging)
    except (InputError, OSError) as error:
        raise ModelError(f"{error}: VLMFLOW_CACHE names another directory") from error
    return directory


def add_tuned(model: Any, tuned: dict[str, Tensor]) -> None:
    """Load the projector and add every adapter ``up @ down`` to its matrix, in float32.

    Parameters
    ----------
    model
        A LLaVA whose decoder is the pretrained one; changed in place.
    tuned
        ``projector.NAME`` and, for matrix NAME of decoder layer K, ``adapters.K.NAME.down`` (r, in)
        and ``adapters.K.NAME.up`` (out, r).
    """
    projector = {
        key.removeprefix("projector."): value.float()
        for key, value in tuned.items()
        if key.startswith("projector.")
    }
    model.model.multi_modal_projector.load_state_dict(projector)
    for key, down in tuned.items():
        path, _, kind = key.removeprefix("adapters.").rpartition(".")
        if key.startswith("adapters.") and kind == "down":
            matrix = model.model.language_model.layers.get_submodule(path).weight
            with torch.no_grad():
                matrix += tuned[f"adapters.{path}.up"].float() @ down.float()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
