"""The class that lmms-eval runs: ``lmms-eval --model vlmflow``. It needs lmms-eval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from vlmflow.errors import InputError
from vlmflow.lmms_eval_model.answering import Request, answer_requests, refusal
from vlmflow.lmms_eval_model.arguments import Arguments


class Vlmflow(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A model of ours as a chat model of lmms-eval.

    Parameters are those of :class:`~vlmflow.lmms_eval_model.arguments.Arguments`, as
    ``--model_args``, ``--device`` and ``--batch_size`` give them.

    Raises
    ------
    InputError, ModelError
        For arguments that cannot be used, a model that cannot be opened, or several processes.
    """

    is_simple = False

    def __init__(self, **_given: Any) -> None:
        super().__init__()
        arguments = Arguments.read(_given)
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1":
            raise InputError(
                f"lmms-eval was started in {processes} processes, but the model vlmflow runs in "
                "one; spread a large model with device_map=auto instead"
            )
        self.vlm, self.policy = arguments.open()
        self.batch_size = arguments.batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests; see :func:`~vlmflow.lmms_eval_model.answering.answer_requests`."""
        ours = [Request(*request.args) for request in requests]
        with tqdm(total=len(ours), desc="Answering") as bar:
            answers = answer_requests(
                self.vlm, self.policy, ours, self.task_dict, self.batch_size, bar.update
            )
        return [
            GenerationResult(answer.text, TokenCounts(answer.input_tokens, answer.output_tokens))
            for answer in answers
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Refuse tasks of several rounds."""
        raise refusal(requests[0].request_type)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Refuse: lmms-eval itself asks chat models for generated answers only."""
        raise refusal(requests[0].request_type)

    def clean(self) -> None:
        """Let go of the model's memory, before a judge needs it."""
        if hasattr(self, "vlm"):
            del self.vlm
        super().clean()
