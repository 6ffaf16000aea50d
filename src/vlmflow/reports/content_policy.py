"""What a page may run and load, as its content policy says it."""

from __future__ import annotations

import base64
import hashlib


def digest(text: str) -> str:
    """Name an inline script or style by its hash, so that a policy allows it and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
