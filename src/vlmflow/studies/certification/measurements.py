"""Samples: their answers under every exit, and what exit signals say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.lvlm.tokens import answer_text
from vlmflow.studies.certification.outcomes import FloatArray, Outcomes
from vlmflow.tasks.base import Task, TaskSample
from vlmflow.truncation.exit_readings import read_exits
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.shared_answers import shared_answers
from vlmflow.truncation.truncation import Truncation

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Measured:
    """``E`` exit layers, ``G`` amounts that stay."""

    # Untouched, then layer by layer every amount: 1 + E * G of {"text", "ids"}
    answers: list[dict[str, Any]]
    signals: Mapping[str, FloatArray]  # (E,) each
    states: npt.NDArray[np.float32]  # (E, 2 * width)
    text: npt.NDArray[np.float32]  # (width,)


def measure(
    vlm: LVLM,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    amounts: Sequence[Any],
    rank_by: str,
    signals: Mapping[str, ExitSignal],
    max_new_tokens: int,
) -> list[Measured]:
    """Answer prompts untouched and under every exit, and read the signals of the untouched runs.

    Answers of all prompts are made together; signals are read prompt by prompt, as a policy would.

    Raises
    ------
    InputError, ModelError
        Whatever is wrong with one of them.
    """
    policies = [
        Truncation(layer, keep, rank_by) if keep else Truncation(layer, 0)
        for layer in layers
        for keep in amounts
    ]
    tokenizer = vlm.processor.tokenizer
    measured = []
    answers = shared_answers(vlm, prompts, policies, max_new_tokens=max_new_tokens)
    for prompt, own in zip(prompts, answers, strict=True):
        readings = read_exits(vlm, prompt, signals, layers)
        measured.append(
            Measured(
                answers=[{"text": answer_text(tokenizer, ids), "ids": list(ids)} for ids in own],
                signals=readings.values,
                states=readings.states,
                text=readings.text,
            )
        )
    return measured


def outcomes_of(
    task: Task,
    pairs: Sequence[tuple[TaskSample, Measured]],
    layers: Sequence[int],
    depth: int,
    keeps: Sequence[float],
    *,
    bounded: bool = False,
) -> Outcomes:
    """Put the measurements of some samples into arrays.

    Without losses (all 0) where the task scores all answers together.

    Raises
    ------
    InputError
        With ``bounded``, which a promise about losses needs, for a score outside 0 to 1.
    """
    shape = len(layers), len(keeps)
    changed, losses = [], []
    for sample, measured in pairs:
        own, *others = measured.answers
        changed.append(np.reshape([other["ids"] != own["ids"] for other in others], shape))
        # Most exits leave most answers as they are: each text is scored once.
        texts = dict.fromkeys(answer["text"] for answer in measured.answers)
        scores = {text: task.score(sample, text) if task.by_itself else 0.0 for text in texts}
        for score in scores.values() if bounded else ():
            _check_bounded(task, sample, score)
        lost = [scores[own["text"]] - scores[other["text"]] for other in others]
        losses.append(np.reshape(lost, shape))
    return Outcomes(
        layers=tuple(layers),
        depth=depth,
        keeps=tuple(keeps),
        changed=np.array(changed, dtype=bool).reshape(len(pairs), *shape),
        losses=np.array(losses, dtype=np.float64).reshape(len(pairs), *shape),
        signals={
            name: np.stack([measured.signals[name] for _, measured in pairs])
            for name in pairs[0][1].signals
        },
        states=np.stack([measured.states for _, measured in pairs]),
        texts=np.stack([measured.text for _, measured in pairs]),
        groups=tuple(sample.group for sample, _ in pairs),
        clusters=tuple(sample.cluster or sample.key for sample, _ in pairs),
    )


def _check_bounded(task: Task, sample: TaskSample, score: float) -> None:
    if not 0 <= score <= 1:
        raise InputError(
            f"task {task.name} scores an answer to {sample.key} with {score:g}; a promise about "
            "the score needs one between 0 and 1"
        )
