"""The names along a result's axes, beside ``SEGMENTS``."""

from __future__ import annotations

FLAGS: tuple[str, ...] = ("ok", "undefined", "empty", "no attention here")
"""What the numbers in ``InformationFlow.flags`` say about a map: "undefined" where the definition
gives nothing (LLaVA-CAM in the last layer), "empty" where no value is positive, and "no attention
here" for layers that have none."""

DESTINATIONS: tuple[str, ...] = ("user", "answer")
"""Order of the destination axis of the saliency arrays."""

WHOLE_ANSWER = "answer"
"""Name of the first target."""

OF: tuple[str, ...] = ("answer", "question", "prompt")
"""Texts whose words can be explained; the first is the default."""
