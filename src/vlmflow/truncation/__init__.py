"""Acting: remove image tokens from a decoder layer on, for real."""

from __future__ import annotations

from vlmflow.truncation.truncation import Truncation

__all__ = ["Truncation"]
