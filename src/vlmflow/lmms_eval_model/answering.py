"""Answering the requests of lmms-eval in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmflow.errors import InputError, VlmflowError
from vlmflow.lmms_eval_model.generation import Ends, Generation
from vlmflow.lmms_eval_model.prompts import as_prompt
from vlmflow.lvlm.batch import in_groups

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM, Truncating
    from vlmflow.lvlm.prompt import Prompt


class Request(NamedTuple):
    """The arguments of a ``generate_until`` request for a chat model, in lmms-eval's order."""

    context: str
    doc_to_messages: Callable[[Any], Sequence[Mapping[str, Any]]]
    settings: Mapping[str, Any]
    doc_id: int
    task: str
    split: str


@dataclass(frozen=True)
class Answer:
    """What a request is answered with, and how many tokens went in and came out."""

    text: str
    input_tokens: int
    output_tokens: int


def answer_requests(
    vlm: LVLM,
    policy: Truncating | None,
    requests: Sequence[Request],
    documents: Mapping[str, Any],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer all requests; the answers come in their order.

    Parameters
    ----------
    vlm : LVLM
        The model.
    policy : Truncation or ExitPolicy, optional
        What removes its image tokens.
    requests : sequence of Request
        Of any tasks.
    documents : mapping
        Of a task's splits by its name, and of a split's documents by their number.
    batch_size : int
        Requests at once. Padding is hidden from the model, but last digits depend on the batch, and
        in 16 bits an answer whose two best tokens are one apart can change with it. A batch that
        the model cannot take (pictures of different shapes, with some) is answered one by one.
    progress : callable, optional
        Called with the number of requests that have been answered more.

    Raises
    ------
    InputError, ModelError
        If a request cannot be answered, naming its task and document: an answer in its place would
        be scored as the model's.
    """
    answers: dict[int, Answer] = {}
    for numbers in batches(requests, batch_size):
        batch = [requests[number] for number in numbers]
        generation = Generation.read(batch[0].settings)
        prompts = [_prepared(vlm, request, documents) for request in batch]
        try:
            answered = _answered(vlm, policy, prompts, generation)
        except VlmflowError:  # a prompt is at fault, or the model stacks no such pictures
            pairs = zip(batch, prompts, strict=True)
            answered = [_alone(vlm, policy, *pair, generation) for pair in pairs]
        answers |= dict(zip(numbers, answered, strict=True))
        if progress is not None:
            progress(len(batch))
    return [answers[number] for number in range(len(requests))]


def batches(requests: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
    """Give numbers of requests that go together: with the same settings, the longest first.

    Pictures are not looked at for it, which would open all of them at once.
    """
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.settings.items())), []).append(number)
    for group in groups.values():
        ordered = sorted(group, key=lambda number: -len(requests[number].context))
        for start in range(0, len(ordered), batch_size):
            yield ordered[start : start + batch_size]


def _prepared(vlm: LVLM, request: Request, documents: Mapping[str, Any]) -> Prompt:
    try:
        document = documents[request.task][request.split][request.doc_id]
        return as_prompt(vlm, request.doc_to_messages(document))
    except VlmflowError as error:
        raise type(error)(f"{request.task}, document {request.doc_id}: {error}") from error


def _alone(
    vlm: LVLM,
    policy: Truncating | None,
    request: Request,
    prompt: Prompt,
    generation: Generation,
) -> Answer:
    try:
        (answer,) = _answered(vlm, policy, [prompt], generation)
    except VlmflowError as error:
        raise type(error)(f"{request.task}, document {request.doc_id}: {error}") from error
    return answer


def _answered(
    vlm: LVLM, policy: Truncating | None, prompts: Sequence[Prompt], generation: Generation
) -> list[Answer]:
    """Answer a batch: prompts without pictures, and those with less room, apart from the others."""
    ends = Ends(vlm.processor.tokenizer, generation.until)

    def answered(group: list[Prompt], kind: tuple[bool, int]) -> list[Answer]:
        has_pictures, room = kind
        longest = max(len(prompt.layout) for prompt in group)
        criteria = ends.criteria(longest)
        stopping = {} if criteria is None else {"stopping_criteria": criteria}
        rows = vlm.generate_batch(
            group,
            max_new_tokens=room,
            truncation=policy if has_pictures else None,
            options={**generation.options, **stopping},
        )
        return [
            Answer(ends.cut(ids), len(prompt.layout), len(ids))
            for prompt, ids in zip(group, rows, strict=True)
        ]

    kinds = [
        (bool(prompt.images), vlm.room_for_answer(prompt, generation.max_new_tokens))
        for prompt in prompts
    ]
    return in_groups(prompts, kinds, answered)


def refusal(kind: str) -> InputError:
    """Say that the model answers no requests of a kind."""
    return InputError(
        f"the model vlmflow answers no {kind} requests; choose tasks whose output_type is "
        "generate_until"
    )
