"""PaliGemma: one square grid per picture, in front of a prompt that sees itself both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vlmflow.lvlm.families.llava import Llava


class PaliGemma(Llava):
    """LLaVA's grid. What the model answers is marked, so that it is seen from later tokens only."""

    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    answer_inputs: ClassVar[Mapping[str, int]] = {"token_type_ids": 1}
    bare_lead: ClassVar[str] = ""  # the processor ends the prompt with a line break by itself
