"""What a result accepts: arrays that fit, indices that exist."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.flow.axes import FLAGS
from vlmflow.lvlm.layout import TokenLayout
from vlmflow.result.map_info import MapInfo
from vlmflow.result.picture_effect import PictureEffect


def read_only(value: Any, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> Any:
    """Return a read-only view in the stored type, or refuse what does not fit.

    ``name`` is what the value is called in an error. Raises InputError if the shape differs or a
    value is NaN or infinite.
    """
    try:
        with np.errstate(over="ignore"):  # what overflows float32 is refused below
            array = np.asarray(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of {np.dtype(dtype).name}") from error
    if array.shape != tuple(shape):
        raise InputError(f"{name} must have shape {tuple(shape)}, not {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(
            f"{name} holds values that are not finite; measure again in float32 or bfloat16"
        )
    view = array.view()
    view.setflags(write=False)
    return view


def plural(count: int, noun: str) -> str:
    """Return "1 layer", "2 layers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def valid_index(name: str, value: int, count: int, has: str) -> int:
    """Return a valid index, or raise an InputError that names the valid ones.

    ``has`` says in the error how many there are: "this model has 12 decoder layers". Negative
    indices do not wrap around.
    """
    try:
        index = operator.index(value)
    except TypeError:
        index = -1
    if isinstance(value, bool) or not 0 <= index < count:
        raise InputError(f"{name}={value!r}, but {has} (0..{count - 1})")
    return index


def check_grids(layout: TokenLayout) -> None:
    """Raise InputError if a grid does not belong to a picture, or not to image tokens."""
    images = range(len(layout.image_sizes))
    for index, grid in enumerate(layout.grids):
        inside = np.isin(grid.positions, layout.image_positions).all()
        if grid.image not in images or not inside or not grid.positions.size:
            raise InputError(f"grid {index} of the layout does not lie on its image tokens")


def display_copies(
    pictures: Sequence[npt.ArrayLike], layout: TokenLayout
) -> tuple[npt.NDArray[np.uint8], ...]:
    """Return one read-only (height, width, 3) uint8 copy per picture of the layout."""
    sizes = layout.image_sizes
    if len(pictures) != len(sizes):
        raise InputError(
            f"pictures must hold one copy per picture of the layout: it has {len(sizes)}, "
            f"but {len(pictures)} were given"
        )
    copies = []
    for index, picture in enumerate(pictures):
        array = np.asarray(picture)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise InputError(
                f"pictures[{index}] must be (height, width, 3) uint8, "
                f"not {array.shape} {array.dtype}"
            )
        copies.append(read_only(array, f"pictures[{index}]", np.uint8, array.shape))
    return tuple(copies)


def check_targets(
    answer_tokens: Sequence[str], targets: Sequence[str], layout: TokenLayout, whole: str
) -> None:
    """Raise InputError for texts of tokens or targets that do not fit the layout or each other.

    ``whole`` is the first target's.
    """
    for name, texts in (("answer_tokens", answer_tokens), ("targets", targets)):
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{name} must hold texts only")
    count, given = layout.answer_positions.size, len(answer_tokens)
    if count == 0 or given != count:
        raise InputError(
            f"answer_tokens must name each answer token of the layout: it has {count}, but {given} "
            "were given"
        )
    if tuple(targets) not in ((whole,), (whole, *answer_tokens)):
        raise InputError(f"targets must be {whole!r}, alone or followed by the answer tokens")


def check_effect(effect: PictureEffect | None, answer_tokens: Sequence[str]) -> None:
    """Raise InputError for an effect of the picture on another answer."""
    if effect is not None and len(effect.likeliest) != len(answer_tokens):
        raise InputError(
            f"picture_effect is of {plural(len(effect.likeliest), 'answer token')}, but there "
            f"are {len(answer_tokens)}"
        )


def valid_target(target: int | str, targets: Sequence[str]) -> int:
    """Return the index of a target that is given by its number or by a text that occurs once."""
    count = len(targets)
    if not isinstance(target, str):
        return valid_index("target", target, count, f"this result has {plural(count, 'target')}")
    if target == targets[0]:
        return 0
    places = [place for place, text in enumerate(targets) if place and text.strip() == target]
    if len(places) == 1:
        return places[0]
    if places:
        numbers = ", ".join(map(str, places))
        raise InputError(f"target={target!r} occurs in the answer several times; give {numbers}")
    texts = ", ".join(repr(text.strip()) for text in targets)
    run = " ".join(target.split()) in " ".join("".join(targets[1:]).split())
    raise InputError(
        f"target={target!r}, but the targets of this result are {texts}"
        + f"; several tokens are explained together by vlm.explain(..., target={target!r})" * run
    )


def checked_maps(
    maps: Mapping[str, Any],
    flags: Mapping[str, Any],
    about: Mapping[str, MapInfo],
    shape: tuple[int, int, int],
) -> tuple[dict[str, MapInfo], dict[str, Any], dict[str, Any]]:
    """Return a description, read-only maps and flags for every signal.

    A signal that ``about`` does not describe gets what its name and shape say. ``shape`` is
    (L, G, P), of a map with one row per layer; one that is summed over layers has a single row.
    """
    if set(maps) != set(flags):
        raise InputError(
            f"every map needs flags, but maps are {sorted(maps)} and flags {sorted(flags)}"
        )
    layers, targets, tokens = shape
    infos: dict[str, MapInfo] = {}
    values, checked_flags = {}, {}
    for signal in maps:
        single = layers > 1 and len(maps[signal]) == 1
        default = MapInfo(signal, summed=(0, layers - 1) if single else None)
        infos[signal] = about.get(signal, default)
        rows = layers if infos[signal].summed is None else 1
        name = f"maps[{signal!r}]"
        values[signal] = read_only(maps[signal], name, np.float32, (rows, targets, tokens))
        name = f"flags[{signal!r}]"
        checked_flags[signal] = read_only(flags[signal], name, np.int8, (rows, targets))
        if not np.isin(checked_flags[signal], range(len(FLAGS))).all():
            raise InputError(f"{name} must hold 0..{len(FLAGS) - 1} (see FLAGS)")
    return infos, values, checked_flags
