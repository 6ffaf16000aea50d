"""How far the map of one answer can be trusted, beside orders drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.lvlm.geometry import paint
from vlmflow.lvlm.model import LVLM
from vlmflow.result.checks import valid_target
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.map_info import MapInfo
from vlmflow.result.map_trust import Curves, FloatArray, Trust
from vlmflow.trust.controls import CONTROLS, control_map
from vlmflow.trust.curves import STEPS, measure_curves
from vlmflow.trust.scoring import BATCH, token_probabilities

ORDERS = 8
"""Random orders beside a map."""


def trust(
    vlm: LVLM,
    flow: InformationFlow,
    chosen: tuple[str, int | None, int | str],
    *,
    images: Sequence[Image.Image] | None = None,
    image: int = 0,
    replacement: str = "black",
    steps: int = STEPS,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Trust:
    """Insert and delete a picture in the order of a map; see :meth:`vlmflow.LVLM.trust`.

    ``chosen`` is the map: signal, layer and target.
    """
    signal, layer, target = chosen
    pictures = _pictures(flow, images)
    _require_the_same_prompt(vlm, flow, pictures)
    is_control = signal in CONTROLS and signal not in flow.signals
    if is_control:
        if layer is not None:
            raise InputError(f"layer={layer!r}, but the control {signal!r} has no layers")
        about = MapInfo(signal)
        # What no token looks at is no control's either.
        ones = np.ones(flow.layout.image_positions.size)
        seen = paint(flow.layout.grids, ones, flow.layout, image)
        values = np.where(np.isnan(seen), np.nan, control_map(signal, pictures[image]))
    else:
        about = flow.map_info(signal)
        values = flow.pixel_map(signal, layer, target, image).astype(np.float64)
        if flow.flag(signal, layer, target) != "ok":
            raise InputError(
                f"the {signal} map is {flow.flag(signal, layer, target)} there, so it ranks "
                "nothing; name another layer or signal"
            )
    place = valid_target(target, flow.targets)
    answer = flow.settings.get("answer_ids")
    if not isinstance(answer, list):
        raise InputError("this result does not hold its answer's token ids; explain it again")
    total, done = 2 * steps * (1 + ORDERS), 0

    def score(shown: Sequence[Image.Image]) -> FloatArray:
        nonlocal done

        def on_batch(count: int) -> None:
            if progress is not None:
                progress(done + count, total)

        probabilities = token_probabilities(
            vlm, shown, pictures, image, flow.question, answer,
            words=flow.words, batch=batch, on_batch=on_batch,
        )  # fmt: skip
        done += len(shown)
        own: FloatArray = probabilities[:, place - 1] if place else probabilities.mean(1)
        return own

    def curves(painted: FloatArray, seed: int) -> Curves:
        return measure_curves(
            pictures[image], painted, score, replacement=replacement, steps=steps, seed=seed
        )

    own = curves(values, 0)
    generator = np.random.default_rng(0)
    random = []
    for number in range(ORDERS):
        drawn = generator.random(flow.layout.image_positions.size)
        painted = paint(flow.layout.grids, drawn, flow.layout, image).astype(np.float64)
        random.append(curves(painted, number).difference)
    token = flow.targets[place].strip() if place else ""
    subject = "this answer" if flow.words is None else flow.subject
    return Trust(
        about=about,
        layer=layer,
        token=token,
        replacement=replacement,
        curves=own,
        random=tuple(random),
        signal=signal,
        target=place,
        image=image,
        is_control=is_control,
        subject=subject,
    )


def _pictures(flow: InformationFlow, images: Sequence[Image.Image] | None) -> list[Image.Image]:
    """Return the pictures asked about: those given, or the copies that a result holds."""
    sizes = flow.layout.image_sizes
    given = images if images is not None else [Image.fromarray(copy) for copy in flow.pictures]
    pictures = [picture.convert("RGB") for picture in given]
    if any(flow.layout.frames):
        raise InputError("a video cannot be inserted and deleted; explain its frames as pictures")
    if [picture.size for picture in pictures] != [tuple(size) for size in sizes]:
        which = "images are not the result's" if images is not None else "result holds small copies"
        raise InputError(
            f"the {which}: it was measured on {', '.join(f'{w} x {h}' for w, h in sizes)} pixels; "
            "pass these pictures as images="
        )
    return pictures


def _require_the_same_prompt(
    vlm: LVLM, flow: InformationFlow, pictures: Sequence[Image.Image]
) -> None:
    """Refuse a result of another model, or of more than one question."""
    if flow.model != vlm.name:
        raise InputError(f"this result was measured on {flow.model}, not on {vlm.name}; load that")
    if vlm.prepare(pictures, flow.question).text != flow.prompt:
        raise InputError(
            "this answer was given to a conversation, of which the result holds the last question "
            "only; explain an answer to one question"
        )
