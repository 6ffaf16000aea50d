"""From the messages of a request of lmms-eval to a prompt of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmflow.errors import InputError
from vlmflow.lvlm.chat import Message, render, texts
from vlmflow.lvlm.encoding import encode
from vlmflow.lvlm.layout import Segment, TokenLayout
from vlmflow.lvlm.prompt import Prompt
from vlmflow.lvlm.tokens import refuse_special_text, token_texts

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM

PLACE = "<image>"
"""What lmms-eval's tasks write where a picture belongs into a text."""


def as_prompt(vlm: LVLM, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Prepare the messages of one request; without a picture, too.

    A text that says :data:`PLACE` as often as its message has pictures gets them there. Elsewhere
    the word is taken out and the pictures come first, as in lmms-eval's own models.

    Raises
    ------
    InputError, ModelError
        For messages that the model cannot be asked: with sound, or what :meth:`LVLM.prepare`
        refuses, such as a video's file where the model takes none.
    """
    ours = [_message(message) for message in messages]
    if any(part["type"] != "text" for message in ours for part in message["content"]):
        return vlm.prepare(None, ours)
    return _of_text(vlm, ours)


def _message(message: Mapping[str, Any]) -> Message:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    plain = [_part(part) for part in parts]
    pictures = [part for part in plain if part["type"] == "image"]
    written = [part for part in plain if part["type"] == "text"]
    count = sum(part["text"].count(PLACE) for part in written)
    if not count:
        return {"role": message["role"], "content": plain}
    if count != len(pictures) or len(plain) != len(pictures) + len(written):
        for part in written:
            part["text"] = part["text"].replace(PLACE, "")
        return {"role": message["role"], "content": plain}
    placed, waiting = [], iter(pictures)
    for part in written:
        for number, piece in enumerate(part["text"].split(PLACE)):
            placed += [next(waiting)] if number else []
            placed += [{"type": "text", "text": piece}] if piece.strip() else []
    return {"role": message["role"], "content": placed}


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part in transformers' form: lmms-eval calls any source of it its ``url``."""
    kind = part["type"]
    return {"type": kind, "text": part["text"]} if kind == "text" else {
        "type": kind,
        kind: part["url"],
    }  # fmt: skip


def _of_text(vlm: LVLM, messages: Sequence[Message]) -> Prompt:
    """Prepare a conversation without pictures: nothing of it can be removed."""
    if not messages or messages[-1]["role"] != "user" or not "".join(texts(messages[-1:])).strip():
        raise InputError("the messages do not end with a question of the user's")
    for written in texts(messages):
        refuse_special_text(vlm.processor.tokenizer, written, "question", vlm.placeholders)
    text, lead = render(vlm.processor, messages, vlm.placeholders, bare_lead=vlm.family.bare_lead)
    inputs = encode(text, (), vlm.processor, vlm.device, vlm.dtype, vlm.name)
    ids = inputs["input_ids"][0].tolist()
    segments = np.full(len(ids), Segment.USER, dtype=np.int8)
    layout = TokenLayout(segments, token_texts(vlm.processor.tokenizer, ids), ())
    return Prompt(inputs, layout, (), text, lead=lead)
