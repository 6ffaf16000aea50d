"""Put a model together from a pretrained decoder and what was trained for it, once.

The package holds what was trained: projector, low-rank adapters, and a tower where no other bundled
model has it. The result is a plain transformers directory in the user's cache, without adapters:
their products are added to the decoder's matrices.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vlmflow.bundled.smollm2 import SHA256, build_llava, find_weights
from vlmflow.bundled.smolqwen import build_qwen
from vlmflow.bundled.smolvlm import build_smolvlm
from vlmflow.errors import InputError, ModelError, Note
from vlmflow.files import staged

FORMAT = "1"
"""Of what is put together: another one where the same parts are put together differently."""


@dataclass(frozen=True)
class Parts:
    """Where the weights of a model that is put together go.

    Modules are named by their paths in the model.
    """

    build: Callable[[], tuple[Any, Any]]  # Model and processor: decoder pretrained, rest random
    decoder: str  # Module whose layers the adapters belong to
    # Modules whose weights stand whole in the file, by the prefix of their names in it
    whole: dict[str, str]
    # Module that is that of another bundled model, unchanged, and that model's name
    shared: tuple[str, str] | None = None


PARTS = {
    "scenes-smollm2": Parts(
        build=build_llava,
        decoder="model.language_model",
        whole={"projector": "model.multi_modal_projector"},
        shared=("model.vision_tower", "scenes-llava"),
    ),
    "scenes-smolvlm": Parts(
        build=build_smolvlm,
        decoder="model.text_model",
        whole={"projector": "model.connector.modality_projection", "tower": "model.vision_model"},
    ),
    "scenes-qwen": Parts(
        build=build_qwen,
        decoder="model.language_model",
        whole={
            "projector": "model.visual.merger",
            "tower.patch_embed": "model.visual.patch_embed",
            "tower.blocks": "model.visual.blocks",
        },
    ),
}


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
    parts = PARTS[name]
    donor = bundled / parts.shared[1] if parts.shared else None
    files = [tuned, donor / "model.safetensors"] if donor else [tuned]
    digests = [FORMAT, SHA256, *(_digest(path) for path in files)]
    mark = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:12]
    directory = cache_directory() / "models" / f"{name}-{mark}"
    if (directory / "config.json").is_file():
        return directory
    weights_file = find_weights()
    warnings.warn(
        f"putting {name} together from {weights_file.name} and its adapters, once: {directory}",
        Note,
        stacklevel=2,
    )
    model, processor = parts.build()
    try:
        weights = load_file(tuned)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{tuned} is damaged ({error}); install vlmflow again") from error
    try:
        add_tuned(model, weights, parts)
    # torch names a part or a shape that does not fit by errors without a common base.
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{tuned} does not fit {name} ({error}); install vlmflow again") from error
    if parts.shared and donor:
        path = parts.shared[0]
        opened: Any = AutoModelForImageTextToText.from_pretrained(donor)
        model.get_submodule(path).load_state_dict(opened.get_submodule(path).state_dict())
    try:
        with staged(directory) as staging:
            model.to(torch.bfloat16).save_pretrained(staging)
            processor.save_pretrained(staging)
    except (InputError, OSError) as error:
        raise ModelError(f"{error}: VLMFLOW_CACHE names another directory") from error
    return directory


def add_tuned(model: Any, tuned: dict[str, Tensor], parts: Parts) -> None:
    """Load what stands whole and add every adapter ``up @ down`` to its matrix, in float32.

    Parameters
    ----------
    model
        A model whose decoder is the pretrained one; changed in place.
    tuned
        ``PREFIX.NAME`` for each of the whole modules and, for matrix NAME of decoder layer K,
        ``adapters.K.NAME.down`` (r, in) and ``adapters.K.NAME.up`` (out, r).
    parts
        Where they go.
    """
    for prefix, module in parts.whole.items():
        weights = {
            key.removeprefix(f"{prefix}."): value.float()
            for key, value in tuned.items()
            if key.startswith(f"{prefix}.")
        }
        model.get_submodule(module).load_state_dict(weights)
    layers = model.get_submodule(parts.decoder).layers
    for key, down in tuned.items():
        path, _, kind = key.removeprefix("adapters.").rpartition(".")
        if key.startswith("adapters.") and kind == "down":
            with torch.no_grad():
                matrix = layers.get_submodule(path).weight
                matrix += tuned[f"adapters.{path}.up"].float() @ down.float()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
