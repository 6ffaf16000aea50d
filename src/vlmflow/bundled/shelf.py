"""The bundled models by name, as directories that transformers opens."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).resolve().parent / "models"
"""Directory that holds one directory per bundled model."""

TUNED = "tuned.safetensors"
"""File of a bundled model that is put together: its projector and adapters, in bfloat16."""


def bundled_models() -> tuple[str, ...]:
    """List the names of the models that ship with the package, whole or as what was trained."""
    files = (path for name in ("config.json", TUNED) for path in BUNDLED.glob(f"*/{name}"))
    return tuple(sorted(path.parent.name for path in files))


def bundled_directory(name: str) -> Path:
    """Return the directory of a bundled model, put together in the user's cache where need be.

    Raises
    ------
    ModelError
        If the weights that it stands on are not on this machine, or cannot be put together.
    """
    # Names can be looked up before torch is there.
    from vlmflow.bundled.assembly import assembled

    tuned = BUNDLED / name / TUNED
    return assembled(name, tuned, BUNDLED) if tuned.is_file() else tuned.parent
