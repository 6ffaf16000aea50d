"""What exit signals say of one prompt at many layers, read in a single untouched pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.lvlm.layout import Segment
from vlmflow.truncation.exit_policy import ExitPolicy
from vlmflow.truncation.exit_signals.signal import READS, ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView
from vlmflow.truncation.selection import numbers_of

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


@dataclass(frozen=True, eq=False)
class ExitReadings:
    """What one prompt shows at ``E`` layers."""

    # By name of the signal: (E,), NaN at layers where it has no attention to read
    values: Mapping[str, npt.NDArray[np.float64]]
    states: npt.NDArray[np.float32]  # (E, 2 * width): last state, and mean of the text's
    text: npt.NDArray[np.float32]  # (width,): mean embedding of the question's tokens


@dataclass(eq=False)
class _Notes:
    signals: Mapping[str, ExitSignal]
    values: list[list[float]] = field(default_factory=list)  # Of every layer: (signals,)
    states: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Reader(ExitSignal):
    """Notes what other signals say, and lets nobody leave."""

    name = "read_only"
    reads = READS

    notes: _Notes

    def value(self, seen: ExitView) -> Tensor:
        """Note; see :meth:`ExitSignal.value`."""
        self.notes.values.append([_number(signal, seen) for signal in self.notes.signals.values()])
        self.notes.states.append(torch.cat([seen.last, seen.mean_text]).float().cpu())
        return seen.last.new_zeros(())


def _number(signal: ExitSignal, seen: ExitView) -> float:
    """Give a signal what a policy would show it, no more; NaN where there is nothing to read."""
    if "attention" in signal.all_reads and not seen.has_attention:
        return float("nan")
    own = replace(seen, name=signal.known_as(), reads=signal.all_reads)
    return numbers_of([signal.value(own)], signal)[0]


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

    Raises
    ------
    InputError
        If a signal looks at what it does not declare, or gives anything but a number.
    """
    notes = _Notes(signals)
    policy = ExitPolicy(
        tuple(layers), (0,) * len(layers), signal=_Reader(notes), thresholds=(np.inf,) * len(layers)
    )
    vlm.generate_ids(prompt, max_new_tokens=1, truncation=policy)
    table = np.array(notes.values, np.float64).reshape(len(layers), len(signals))
    ids = prompt.inputs["input_ids"][0]
    question = prompt.layout.positions_of(Segment.USER)
    with torch.no_grad():
        words = vlm.model.get_input_embeddings()(ids[question.tolist()].to(ids.device))
    return ExitReadings(
        values={name: table[:, place] for place, name in enumerate(signals)},
        states=torch.stack(notes.states).numpy(),
        text=words.detach().float().mean(0).cpu().numpy(),  # adapters may ask for its gradient
    )
