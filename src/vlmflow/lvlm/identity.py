"""Which model it is: a short hash of its configuration and of some values of every weight."""

from __future__ import annotations

import hashlib
from typing import Any

PROBED = 64
"""Values read of every weight."""


def weights_digest(model: Any) -> str:
    """Hash kind, number format and weights of a transformers model.

    The same for the same model in another directory or on another device; another one for other
    weights or another number format.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(probed(weight))
    return digest.hexdigest()


def probed(weight: Any) -> bytes:
    """Return some values of a weight, evenly spaced, as bytes."""
    flat = weight.detach().flatten()
    step = max(1, flat.numel() // PROBED)
    values: bytes = flat[::step][:PROBED].float().cpu().numpy().tobytes()
    return values
