"""What may stand beside every explained answer of a task: a test of its map, a truncated answer."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmflow.errors import InputError
from vlmflow.explanation.truncated import with_truncation
from vlmflow.trust.of_explanation import with_trust

if TYPE_CHECKING:
    from vlmflow.flow.options import ExplainOptions
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt
    from vlmflow.result.information_flow import InformationFlow
    from vlmflow.truncation.truncation import Truncation


@dataclass(frozen=True)
class Beside:
    """What is wanted of every answer beside its explanation."""

    trust: bool = False  # Its map tested by insertion and deletion, 144 short passes
    truncation: Truncation | None = None  # The answer under it, and what each layer saw

    def __bool__(self) -> bool:
        return self.trust or self.truncation is not None

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; the ranking's own code is part of it."""
        if self.truncation is None:
            return {"trust": self.trust, "truncation": None}
        return {
            "trust": self.trust,
            "truncation": self.truncation.to_json(),
            "ranking": self.truncation.ranking.fingerprint() if self.truncation.ranks else None,
        }

    def added_to(
        self,
        flow: InformationFlow,
        vlm: LVLM,
        prompt: Prompt,
        options: ExplainOptions,
    ) -> InformationFlow:
        """Return a result with what is wanted."""
        if self.trust:
            # Where no map ranks anything there is nothing to test; the list says so.
            with suppress(InputError):
                flow = with_trust(vlm, flow, prompt.visuals, low_memory=options.low_memory)
        if self.truncation is not None:
            flow = with_truncation(
                vlm, flow, prompt, self.truncation, max_new_tokens=options.max_new_tokens
            )
        return flow

    def trust_words(self, flow: InformationFlow) -> str:
        """Say whether a result's map ranks regions better than chance; empty: not asked."""
        if not self.trust:
            return ""
        if not flow.trust:
            return "No map of this answer could be tested."
        return " ".join(str(tested) for tested in flow.trust)


NOTHING_BESIDE = Beside()
