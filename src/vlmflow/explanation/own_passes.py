"""What signals with passes of their own may run about one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlmflow.errors import InputError, ModelError
from vlmflow.flow.measure import EMPTY, OK
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.recompute import replaced_forward
from vlmflow.flow.signals.answer_view import BRANCHES_AT_ONCE, AnswerView
from vlmflow.flow.signals.signal import Signal
from vlmflow.flow.targets import target_values
from vlmflow.lvlm.as_found import as_found
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.model_parts import logits_at
from vlmflow.lvlm.prompt import Prompt
from vlmflow.removal.chosen import logits_without

POSITIONS_AT_ONCE = 64
"""Positions whose whole logits exist at once while some of them are chosen."""


def own_map(
    vlm: LVLM,
    prompt: Prompt,
    signal: Signal,
    options: ExplainOptions,
    *,
    on_pass: Callable[[], None] | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Let a signal run what it needs about one answer.

    Parameters
    ----------
    vlm, prompt : LVLM, Prompt
        The model, left exactly as found, and a prompt with its answer.
    signal : Signal
        One that defines ``of_answer``.
    options : ExplainOptions
        Target, targets and memory.
    on_pass : callable, optional
        Called after each pass.

    Returns
    -------
    maps : (1, G, P) float32
    flags : (1, G) int8
        Empty where a map has no positive value.

    Raises
    ------
    InputError
        If the signal gives something else, or fits neither the model nor the prompt.
    ModelError
        If what it gives is not finite, or the model cannot be followed.
    """
    name = signal.known_as()
    view = _Answer(vlm, prompt, options, on_pass or (lambda: None))
    values = signal.of_answer(view)
    layout = prompt.layout
    expected = (1 + len(layout.answer_positions), len(layout.image_positions))
    if not isinstance(values, Tensor) or tuple(values.shape) != expected:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"signal {name!r} gave {shape} where a value for the whole answer and each of its "
            f"{expected[0] - 1} tokens, at each of {expected[1]} image tokens, is needed; return a "
            f"tensor of shape {expected} from of_answer"
        )
    if not bool(values.isfinite().all()):
        raise ModelError(f"the {name} signal is not finite; load the model in float32 or bfloat16")
    maps = values.detach().float().cpu().numpy()[None, : expected[0] if options.per_token else 1]
    return maps, np.where((maps > 0).any(-1), OK, EMPTY).astype(np.int8)


class _Answer(AnswerView):
    """The passes themselves."""

    def __init__(
        self, vlm: LVLM, prompt: Prompt, options: ExplainOptions, on_pass: Callable[[], None]
    ) -> None:
        self.vlm, self.prompt, self.options, self.on_pass = vlm, prompt, options, on_pass
        self.layout = layout = prompt.layout
        self.token_ids = prompt.inputs["input_ids"][0]
        special = torch.tensor(sorted(vlm.processor.tokenizer.all_special_ids), dtype=torch.int64)
        is_text = torch.ones(len(layout), dtype=torch.bool)
        is_text[torch.from_numpy(layout.image_positions)] = False
        self.is_word = is_text.to(self.token_ids.device) & ~torch.isin(
            self.token_ids, special.to(self.token_ids.device)
        )
        self._intact: Tensor | None = None

    def logits(self, vocabulary: Tensor) -> Tensor:
        """See :meth:`AnswerView.logits`: the head runs position by position, a few at a time."""
        model = self.vlm.model
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{type(model).__name__} has no output embeddings that can be found, so the words "
                "that its image tokens speak of cannot be read"
            )

        def chosen(forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
            parts = torch.split(hidden, POSITIONS_AT_ONCE, dim=-2)
            logits = [forward(part) for part in parts]
            return torch.cat([part[..., vocabulary.to(part.device)] for part in logits], dim=-2)

        everywhere = torch.arange(len(self.layout), device=self.token_ids.device)
        with as_found(model), torch.no_grad(), replaced_forward(head, chosen):
            logits = logits_at(model, self.prompt.inputs, everywhere)[0]
        self.on_pass()
        if not bool(logits.isfinite().all()):
            raise ModelError("logits are not finite; load the model in float32 or bfloat16")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def without(self, removed: Tensor) -> Tensor:
        """See :meth:`AnswerView.without`."""
        at_once = BRANCHES_AT_ONCE // 4 if self.options.low_memory else BRANCHES_AT_ONCE
        parts = []
        for some in torch.split(removed, at_once):
            logits = logits_without(self.vlm, self.prompt, some)
            targets = torch.stack([self._targets(of_branch) for of_branch in logits])
            self._intact = targets[0]
            parts.append(targets[1:])
            for _ in range(1 + len(some)):
                self.on_pass()
        return torch.cat(parts)

    @property
    def intact(self) -> Tensor:
        """See :attr:`AnswerView.intact`; what :meth:`without` ran beside its own, if it has."""
        if self._intact is None:
            rows = torch.from_numpy(self.layout.answer_rows).to(self.token_ids.device)
            with as_found(self.vlm.model), torch.no_grad():
                logits: Any = logits_at(self.vlm.model, self.prompt.inputs, rows)[0]
            self._intact = self._targets(logits)
            self.on_pass()
        return self._intact

    def _targets(self, logits: Tensor) -> Tensor:
        answer = self.token_ids[torch.from_numpy(self.layout.answer_positions)]
        return target_values(logits, answer.to(logits.device), self.options.scalar)
