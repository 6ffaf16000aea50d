"""A result taken apart into JSON and named arrays, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.flow.axes import DESTINATIONS, FLAGS
from vlmflow.lvlm.layout import SEGMENTS, TokenLayout
from vlmflow.result.explained_words import ExplainedWords
from vlmflow.result.map_info import MapInfo
from vlmflow.result.map_trust import Trust
from vlmflow.result.picture_effect import PictureEffect
from vlmflow.result.text_attention import TextAttention
from vlmflow.result.truncated_answer import TruncatedAnswer

Arrays = dict[str, npt.NDArray[Any]]

TEXTS = ("model", "question", "prompt", "answer")
SALIENCIES = ("saliency_mean", "saliency_sum")
SHARES = ("attention_share", *SALIENCIES)
_EFFECTS = ("with_picture", "without_picture")
_SEEN = "truncated.seen"
_ROWS = ("text_attention.rows", "text_attention.values")
_AXES = {"segments": list(SEGMENTS), "destinations": list(DESTINATIONS), "flags": list(FLAGS)}


def take_apart(fields: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return a body that JSON can hold, and the arrays beside it.

    ``fields`` are those of an :class:`~vlmflow.result.information_flow.InformationFlow`, by name.
    """
    layout, layout_arrays = fields["layout"].to_dict()
    body = {
        **{name: fields[name] for name in TEXTS},
        "answer_tokens": list(fields["answer_tokens"]),
        "targets": list(fields["targets"]),
        "signals": [
            {"name": signal, **about.to_json()} for signal, about in fields["about"].items()
        ],
        # the names along the axes, for readers in other languages
        "axes": _AXES,
        "settings": dict(fields["settings"]),
        "versions": dict(fields["versions"]),
        "layout": layout,
        "trust": [tested.to_json() for tested in fields["trust"]],
    }
    arrays: Arrays = {name: fields[name] for name in SHARES if fields[name] is not None}
    arrays |= {f"layout.{name}": array for name, array in layout_arrays.items()}
    arrays |= {f"pictures.{index}": array for index, array in enumerate(fields["pictures"])}
    effect = fields["picture_effect"]
    if effect is not None:
        body["likeliest_without_picture"] = list(effect.likeliest)
        arrays |= {name: getattr(effect, name) for name in _EFFECTS}
    attention = fields["text_attention"]
    if attention is not None:
        arrays |= dict(zip(_ROWS, (attention.rows, attention.values), strict=True))
    truncated = fields["truncated"]
    if truncated is not None:
        body["truncated"] = {"settings": dict(truncated.settings), "answer": truncated.answer}
        arrays[_SEEN] = truncated.seen
    if fields["words"] is not None:
        body["words"] = fields["words"].to_json()
    for name in ("maps", "flags"):
        arrays |= {f"{name}.{signal}": array for signal, array in fields[name].items()}
    return body, arrays


def put_together(body: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Return the constructor's arguments from what :func:`take_apart` gave.

    Raises
    ------
    InputError
        If a part is missing, of a wrong type, or one too many.
    """
    left = dict(arrays)

    def take(name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        array = left.pop(name)
        if array.dtype != dtype:
            raise InputError(f"tensor {name!r} is {array.dtype}, not {np.dtype(dtype).name}")
        return array

    try:
        if body["axes"] != _AXES:
            raise InputError("its axes are named differently")
        of_layout = [name for name in left if name.startswith("layout.")]
        layout = TokenLayout.from_dict(
            body["layout"], {name.removeprefix("layout."): left.pop(name) for name in of_layout}
        )
        likeliest, effect = body.get("likeliest_without_picture"), None
        if likeliest is not None:
            own, blind = (take(name, np.float32) for name in _EFFECTS)
            effect = PictureEffect(own, blind, tuple(likeliest))
        attention = None
        if _ROWS[0] in left:  # not in results of before it was kept
            attention = TextAttention(take(_ROWS[0], np.int64), take(_ROWS[1], np.float16))
        words = body.get("words")
        words = None if words is None else ExplainedWords.from_json(words)
        subject = "this answer" if words is None else words.phrase
        about = {str(plain["name"]): MapInfo.from_json(plain) for plain in body["signals"]}
        truncated = None
        if "truncated" in body:
            plain = body["truncated"]
            truncated = TruncatedAnswer(plain["settings"], plain["answer"], take(_SEEN, np.bool_))
        fields = {
            **{name: body[name] for name in TEXTS},
            "answer_tokens": tuple(body["answer_tokens"]),
            "targets": tuple(body["targets"]),
            "layout": layout,
            "pictures": tuple(
                take(f"pictures.{index}", np.uint8) for index in range(len(layout.image_sizes))
            ),
            "attention_share": take("attention_share", np.float32),
            **{name: take(name, np.float32) if name in left else None for name in SALIENCIES},
            "maps": {signal: take(f"maps.{signal}", np.float32) for signal in about},
            "flags": {signal: take(f"flags.{signal}", np.int8) for signal in about},
            "about": about,
            "settings": dict(body["settings"]),
            "versions": dict(body["versions"]),
            "picture_effect": effect,
            "text_attention": attention,
            "truncated": truncated,
            # not in results of before it was kept
            "trust": tuple(
                Trust.from_json(plain, about, tuple(body["targets"]), subject)
                for plain in body.get("trust", ())
            ),
            "words": words,
        }
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{error.args[0]!r} is missing") from error
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"a part of it has the wrong form ({error})") from error
    if left:
        raise InputError(f"tensor {min(left)!r} has no place in a result")
    return fields
