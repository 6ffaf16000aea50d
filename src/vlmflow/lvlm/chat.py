"""From pictures and a question (or a conversation) to the text of a prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jinja2 import TemplateError
from PIL import Image

from vlmflow.errors import InputError, reason
from vlmflow.lvlm.images import open_image
from vlmflow.lvlm.video_files import VideoFile, is_video_file
from vlmflow.lvlm.videos import Video, open_video

PictureSource: TypeAlias = "str | os.PathLike[str] | Image.Image"
VisualSource: TypeAlias = "PictureSource | Video | VideoFile"
Visual: TypeAlias = "Image.Image | Video"
Message: TypeAlias = "dict[str, Any]"

ROLES = ("system", "user", "assistant")

_PROBE = "vlmflow"


def conversation(
    images: VisualSource | Sequence[VisualSource] | None,
    question: str | Sequence[Mapping[str, Any]],
) -> tuple[list[Message], tuple[Visual | VideoFile, ...]]:
    """Return messages in transformers' own format, and the pictures and videos they show in order.

    A question is asked after all ``images``; in a conversation they fill its bare ``{"type":
    "image"}`` and ``{"type": "video"}`` parts in order. A message has a ``role`` and a ``content``:
    a text or a list of parts ``{"type": "text", "text": ...}``, ``{"type": "image"}`` with an
    optional ``"image"`` or ``"path"``, and ``{"type": "video"}`` with an optional ``"video"``, a
    :class:`Video`, its frames, or a file. In the returned messages every content is a list of
    parts, image and video parts are bare, and pictures are RGB and upright; video files are not
    read yet.

    Raises
    ------
    InputError
        For an empty question, no picture, or messages that cannot be read.
    """
    visuals = _as_list(images)
    if isinstance(question, str):
        _require_text(question)
        if not visuals:
            raise InputError("there is no picture: pass at least one as images=...")
        parts: list[Message] = [{"type": _kind(visual)} for visual in visuals]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        return messages, tuple(opened(visual) for visual in visuals)
    sources: list[VisualSource | None] = []
    messages = [_message(message, index, sources) for index, message in enumerate(question)]
    _require_user_turn(messages)
    bare = sum(source is None for source in sources)
    if bare != len(visuals):
        raise InputError(
            f"the messages leave {bare} picture(s) open but images= holds {len(visuals)}: "
            'every {"type": "image"} or "video" part without one of its own takes one'
        )
    if not sources:
        raise InputError('the messages show no picture: add a {"type": "image"} part')
    remaining = iter(visuals)
    filled = [next(remaining) if source is None else source for source in sources]
    kinds = [kind for message in messages for kind in _kinds(message) if kind != "text"]
    for number, (kind, source) in enumerate(zip(kinds, filled, strict=True)):
        if kind != _kind(source):
            raise InputError(
                f'picture {number} of the messages is a part of type "{kind}", but it is given '
                f'what belongs into one of type "{_kind(source)}"'
            )
    return messages, tuple(opened(source) for source in filled)


def render(
    processor: Any,
    messages: Sequence[Message],
    placeholders: Mapping[str, str],
    *,
    bare_lead: str | None = None,
) -> tuple[str, str]:
    """Write a prompt's text, and the white space that a trained model expects before its answer.

    Uses the processor's chat template; without one the prompt of LLaVA-1.5 (``USER: <image>``, line
    break, question, ``ASSISTANT:``), or the placeholders and texts alone where the family has a
    :attr:`~vlmflow.lvlm.families.base.Family.bare_lead`. ``placeholders`` says what stands for an
    ``"image"`` and a ``"video"``. The prompt ends where the model starts to answer. A template that
    takes no list of parts is given each content as one text, with the placeholders in it.

    Raises
    ------
    InputError
        If the template refuses the conversation (two turns of the same role, say), or there are
        several and none is called ``"default"``.
    """
    if not getattr(processor, "chat_template", None):
        if bare_lead is not None:
            kinds = [kind for message in messages for kind in _kinds(message)]
            tokens = "".join(placeholders.get(kind, "") for kind in kinds)
            return tokens + "\n".join(texts(messages)), bare_lead
        return _plain_prompt(messages, placeholders), " "
    _require_default(processor.chat_template)
    as_text = [_with_text_content(message, placeholders) for message in messages]
    refusals: list[Exception] = []
    prompts: list[str] = []
    # Templates disagree on what a content is: a list of parts or one text.
    for form in (messages, as_text):
        try:
            prompt: str = processor.apply_chat_template(form, add_generation_prompt=True)
        # The template's own words, or whatever its expressions raise about what they are given.
        except Exception as error:
            refusals.append(error)
            continue
        if _shows_all(prompt, messages, placeholders):
            return prompt, _lead(processor, form, prompt)
        prompts.append(prompt)
    if prompts:
        return prompts[0], ""  # a wrong number of pictures, which in_prompt_order refuses
    stated = [error for error in refusals if type(error) is TemplateError]
    first = (stated or refusals)[0]
    raise InputError(f"the chat template refuses this conversation: {reason(first)}") from first


def _require_default(template: Any) -> None:
    if isinstance(template, Mapping) and "default" not in template:
        names = ", ".join(map(repr, template)) or "none"
        raise InputError(
            f"the processor has several chat templates ({names}) but none called 'default': set "
            "its chat_template to the one to use"
        )


def _with_text_content(message: Message, placeholders: Mapping[str, str]) -> Message:
    """Write a message's content as one text: each placeholder on a line, and the texts."""
    parts = [
        part["text"] if part["type"] == "text" else f"{placeholders.get(part['type'], '')}\n"
        for part in message["content"]
    ]
    return {**message, "content": "".join(parts)}


def _shows_all(prompt: str, messages: Sequence[Message], placeholders: Mapping[str, str]) -> bool:
    kinds = [kind for message in messages for kind in _kinds(message)]
    return all(prompt.count(token) == kinds.count(kind) for kind, token in placeholders.items())


def _lead(processor: Any, messages: Sequence[Message], prompt: str) -> str:
    """Return the white space that a template puts between a prompt and an answer."""
    content: Any = _PROBE
    if not isinstance(messages[-1]["content"], str):
        content = [{"type": "text", "text": _PROBE}]
    probe: Message = {"role": "assistant", "content": content}
    try:
        answered: str = processor.apply_chat_template([*messages, probe])
    except Exception:  # a template for prompts alone says nothing about answers
        return ""
    before, probe_text, _ = answered.removeprefix(prompt).partition(_PROBE)
    follows = answered.startswith(prompt) and probe_text and not before.strip()
    return before if follows else ""


def texts(messages: Sequence[Message]) -> list[str]:
    """List every text in the messages."""
    return [
        part["text"]
        for message in messages
        for part in message["content"]
        if part["type"] == "text"
    ]


def _as_list(images: VisualSource | Sequence[VisualSource] | None) -> list[VisualSource]:
    if images is None:
        return []
    if isinstance(images, str | os.PathLike | Image.Image | Video | VideoFile):
        return [images]
    return list(images)


def _kind(source: VisualSource) -> str:
    is_video = isinstance(source, Video | VideoFile) or is_video_file(source)
    return "video" if is_video else "image"


def _kinds(message: Message) -> list[str]:
    return [part["type"] for part in message["content"]]


def opened(source: VisualSource) -> Visual | VideoFile:
    """Open a picture, or the frames of a video; a video file is only named."""
    if isinstance(source, Video):
        return open_video(source)
    if isinstance(source, VideoFile):
        return source
    return VideoFile(source) if is_video_file(source) else open_image(source)


def _require_text(question: str) -> None:
    if not question.strip():
        raise InputError("the question is empty: ask something about the picture")


def _message(message: Mapping[str, Any], index: int, sources: list[VisualSource | None]) -> Message:
    """Return one message with its content as a list of parts; its pictures go to ``sources``."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise InputError(
            f'message {index} has role {role!r}: messages are {{"role": one of {", ".join(ROLES)}, '
            '"content": ...}'
        )
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise InputError(f"message {index} has no content: give a text or a list of parts")
    return {"role": role, "content": [_part(part, index, sources) for part in content]}


def _part(part: Any, index: int, sources: list[VisualSource | None]) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise InputError(
            f"message {index} has a part of type {kind!r}: only text, image and video parts are "
            "read"
        )
    if "url" in part or "base64" in part:
        raise InputError(
            f'message {index} shows a picture by url or base64: save it and give its "path"'
        )
    source = part.get(kind)
    source = part.get("path") if source is None else source
    if kind == "video" and source is not None and not isinstance(source, Video | VideoFile):
        source = VideoFile(source) if isinstance(source, str | os.PathLike) else Video(source)
    sources.append(source)
    return {"type": kind}


def _require_user_turn(messages: Sequence[Message]) -> None:
    """Refuse a conversation that does not end with something to answer."""
    if not messages:
        raise InputError("the conversation has no messages")
    last = messages[-1]
    if last["role"] == "assistant":
        raise InputError(
            "the conversation ends with an assistant message: pass its text as answer=... to "
            "explain it, or leave it out"
        )
    if last["role"] != "user":
        raise InputError("the conversation must end with a user message")
    _require_text("".join(texts([last])))


def _plain_prompt(messages: Sequence[Message], placeholders: Mapping[str, str]) -> str:
    """Write a conversation the way LLaVA-1.5 was trained on it."""
    turns = []
    for message in messages:
        tokens = [placeholders[kind] for kind in _kinds(message) if kind in placeholders]
        text = "".join(f"{token}\n" for token in tokens) + " ".join(texts([message]))
        turns.append(text if message["role"] == "system" else f"{message['role'].upper()}: {text}")
    return " ".join([*turns, "ASSISTANT:"])
