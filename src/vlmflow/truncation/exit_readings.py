"""What exit signals say of one prompt at many layers, read in a single untouched pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.lvlm.layout import Segment
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.signal import READS, ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


@dataclass(frozen=True, eq=False)
class ExitReadings:
    """What one prompt shows at ``E`` layers."""

    values: Mapping[str, npt.NDArray[np.float64]]  # By name of the signal: (E,)
    states: npt.NDArray[np.float32]  # (E, 2 * width): last state, and mean of the text's
    text: npt.NDArray[np.float32]  # (width,): mean embedding of the question's tokens


@dataclass(eq=False)
class _Notes:
    signals: Mapping[str, ExitSignal]
    values: list[Tensor] = field(default_factory=list)  # Of every layer: (signals,)
    states: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Reader(ExitSignal):
    """Notes what other signals say, and lets nobody leave."""

    name = "read_only"
    reads = READS

    notes: _Notes

    def value(self, seen: ExitView) -> Tensor:
        """Note; see :meth:`ExitSignal.value`."""
        own = [signal.value(seen).double() for signal in self.notes.signals.values()]
        self.notes.values.append(torch.stack(own) if own else seen.last.new_zeros(0))
        self.notes.states.append(torch.cat([seen.last, seen.mean_text]))
        return seen.last.new_zeros(())


def read_exits(
    vlm: LVLM, prompt: Prompt, signals: Mapping[str, ExitSignal], layers: Sequence[int]
) -> ExitReadings:
    """Read exit signals of a prompt at some layers, as a policy would that nobody leaves by.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model, left as found, and a prompt without an answer.
    signals : mapping
        By any names.
    layers : sequence of E int
        Increasing, from 1 on.
    """
    notes = _Notes(signals)
    policy = ExitPolicy(
        tuple(layers), (0,) * len(layers), signal=_Reader(notes), thresholds=(np.inf,) * len(layers)
    )
    vlm.generate_ids(prompt, max_new_tokens=1, truncation=policy)
    table = torch.stack(notes.values).cpu().numpy()
    ids = prompt.inputs["input_ids"][0]
    question = prompt.layout.positions_of(Segment.USER)
    with torch.no_grad():
        words = vlm.model.get_input_embeddings()(ids[question.tolist()].to(ids.device))
    return ExitReadings(
        values={name: table[:, place] for place, name in enumerate(signals)},
        states=torch.stack(notes.states).float().cpu().numpy(),
        text=words.float().mean(0).cpu().numpy(),
    )
