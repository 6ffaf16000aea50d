"""Between texts and token ids: special tokens in what people type, answers, token texts."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from vlmflow.errors import InputError


def refuse_special_text(
    tokenizer: Any, text: str, what: str, placeholders: Mapping[str, str]
) -> None:
    """Raise if a text is not Unicode, or contains what the tokenizer takes for a special token.

    ``what`` is what messages call the text; ``placeholders`` says what stands for an ``"image"``
    and a ``"video"``.

    Raises
    ------
    InputError
        Naming the special token.
    """
    refuse_surrogates(text, f"the {what}")
    for kind, token in placeholders.items():
        if token in text:
            raise InputError(
                f"the {what} contains the {kind} placeholder {token!r}: leave it out, "
                "pictures are placed by themselves"
            )
    for token in sorted(special_tokens(tokenizer), key=len, reverse=True):
        if token in text:
            raise InputError(
                f"the {what} contains {token!r}, which this model's tokenizer reads as a special "
                "token: leave it out"
            )


def refuse_surrogates(text: str, what: str) -> None:
    """Raise InputError if a text, which messages call ``what``, has no encoding.

    Python spells with lone surrogates what it could not decode, such as bytes of an argument that
    are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds {text[error.start]!r}, half of a surrogate pair or a byte that is not "
            "UTF-8: write it in UTF-8"
        ) from error


def special_tokens(tokenizer: Any) -> set[str]:
    """Return the texts of all special tokens of a tokenizer."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids that end an answer or pad after it: never part of what is explained."""
    config = getattr(model, "generation_config", None)
    ends: set[int] = set()
    for value in (
        getattr(config, "eos_token_id", None),
        getattr(config, "pad_token_id", None),
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    ):
        if value is not None:
            ends.update(value if isinstance(value, list | tuple) else [value])
    return ends


def until_end(ids: Sequence[int], ends: Container[int]) -> tuple[int, ...]:
    """Return the generated tokens before the first that ends an answer (:func:`end_ids`)."""
    stop = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:stop])


def answer_ids_of(tokenizer: Any, prompt: str, lead: str, answer: str) -> list[int]:
    """Tokenise an answer as the model would have to generate it after a prompt.

    The answer is tokenised together with the prompt, with the white space ``lead`` between them, so
    that it gets the word boundary that the model saw in training; where tokens would merge across
    the border, it is tokenised alone. White space around the answer is dropped.

    Raises
    ------
    InputError
        If the answer tokenises to nothing.
    """
    text = lead + answer.strip()
    before = _ids(tokenizer, prompt)
    together = _ids(tokenizer, prompt + text)
    joined = together[: len(before)] == before
    ids = together[len(before) :] if joined else _ids(tokenizer, text)
    if not answer.strip() or not ids:
        raise InputError(f"the answer {answer!r} tokenises to nothing: give at least one word")
    return ids


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text that each token adds, leading space included; special tokens by name.

    A character spread over several byte tokens shows as the replacement character in each.
    """
    special = special_tokens(tokenizer)
    anchor = _ids(tokenizer, "a")[-1:]
    before = decoded(tokenizer, anchor)

    def text_of(token_id: int) -> str:
        name = str(tokenizer.convert_ids_to_tokens(token_id))
        if name in special:
            return name
        # Decoders strip the space in front of a text, hence a token in front.
        text = decoded(tokenizer, [*anchor, token_id])
        return text[len(before) :] if text.startswith(before) else decoded(tokenizer, [token_id])

    texts = {token_id: text_of(token_id) for token_id in set(ids)}
    return tuple(texts[token_id] for token_id in ids)


def answer_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """Decode an answer, without special tokens and the space around it."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text.strip()


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode tokens as they stand, special ones and white space included."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
