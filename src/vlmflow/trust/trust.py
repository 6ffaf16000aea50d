"""How far the map of one answer can be trusted, beside orders drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.lvlm.batch_size import Batch
from vlmflow.lvlm.chat import Visual, VisualSource
from vlmflow.lvlm.geometry import paint
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.result.checks import valid_target
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.map_info import MapInfo
from vlmflow.result.map_trust import Curves, FloatArray, Trust
from vlmflow.trust.controls import CONTROLS, control_map
from vlmflow.trust.curves import STEPS, measure_curves, places_of
from vlmflow.trust.passes import Passes
from vlmflow.trust.scoring import token_probabilities

ORDERS = 8
"""Random orders beside a map."""


def trust(
    vlm: LVLM,
    flow: InformationFlow,
    chosen: tuple[str, int | None, int | str],
    *,
    images: Sequence[VisualSource] | None = None,
    image: int = 0,
    replacement: str = "black",
    steps: int = STEPS,
    batch: Batch = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Trust:
    """Insert and delete a picture or video in the order of a map; see :meth:`vlmflow.LVLM.trust`.

    ``chosen`` is the map: signal, layer and target.
    """
    signal, layer, target = chosen
    passes = Passes(batch, vlm.device)
    prompt = _same_prompt(vlm, flow, images)
    visuals, layout = prompt.visuals, flow.layout
    if not 0 <= image < len(layout.image_sizes):
        raise InputError(f"image={image}, but the prompt has {len(layout.image_sizes)} picture(s)")
    places = places_of(visuals, layout.frames)
    chosen_place = places[image][0]
    # Of a video all groups of frames come and go together.
    members = [number for number, (place, _) in enumerate(places) if place == chosen_place]
    own_frames = [layout.frames[member] for member in members] if layout.frames else []
    groups = [replace(group, video=0) for group in own_frames if group is not None]

    def painted(tokens: npt.ArrayLike) -> FloatArray:
        """Over all pixels that come and go: (members, height, width)."""
        own = [paint(layout.grids, tokens, layout, member) for member in members]
        return np.stack(own).astype(np.float64)

    is_control = signal in CONTROLS and signal not in flow.signals
    if is_control:
        if layer is not None:
            raise InputError(f"layer={layer!r}, but the control {signal!r} has no layers")
        about = MapInfo(signal)
        # What no token looks at is no control's either.
        seen = painted(np.ones(layout.image_positions.size))
        drawn = [
            control_map(signal, prompt.images[member], seed) for seed, member in enumerate(members)
        ]
        values = np.where(np.isnan(seen), np.nan, drawn)
    else:
        about = flow.map_info(signal)
        values = painted(flow.map(signal, layer, target))
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

    def score(shown: Sequence[Visual]) -> FloatArray:
        nonlocal done

        def on_batch(count: int) -> None:
            if progress is not None:
                progress(done + count, total)

        probabilities = token_probabilities(
            vlm, shown, visuals, chosen_place, flow.question, answer,
            words=flow.words, passes=passes, on_batch=on_batch,
        )  # fmt: skip
        done += len(shown)
        own: FloatArray = probabilities[:, place - 1] if place else probabilities.mean(1)
        return own

    def curves(maps: FloatArray, seed: int) -> Curves:
        return measure_curves(
            visuals[chosen_place], maps if groups else maps[0], score, frames=groups,
            replacement=replacement, steps=steps, seed=seed,
        )  # fmt: skip

    own = curves(values, 0)
    generator = np.random.default_rng(0)
    random = []
    for number in range(ORDERS):
        order = generator.random(layout.image_positions.size)
        random.append(curves(painted(order), number).difference)
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


def _same_prompt(vlm: LVLM, flow: InformationFlow, images: Sequence[VisualSource] | None) -> Prompt:
    """Put the result's question again, about what is given or the copies that the result holds.

    Another model, more than one question and other pictures are refused.
    """
    if flow.model != vlm.name:
        raise InputError(f"this result was measured on {flow.model}, not on {vlm.name}; load that")
    layout = flow.layout
    if images is None and any(layout.frames):
        raise InputError(
            "this result holds one frame of each group of its video's frames; pass the whole video "
            "as images="
        )
    given = [Image.fromarray(copy) for copy in flow.pictures] if images is None else images
    prompt = vlm.prepare(given, flow.question)
    if prompt.layout.frames != layout.frames:
        raise InputError(
            "the images are not the result's: it was measured on other frames of a video; pass the "
            "very same as images="
        )
    sizes = [tuple(size) for size in layout.image_sizes]
    if [picture.size for picture in prompt.images] != sizes:
        which = "images are not the result's" if images is not None else "result holds small copies"
        raise InputError(
            f"the {which}: it was measured on {', '.join(f'{w} x {h}' for w, h in sizes)} pixels; "
            "pass these pictures as images="
        )
    if prompt.text != flow.prompt:
        raise InputError(
            "this answer was given to a conversation, of which the result holds the last question "
            "only; explain an answer to one question"
        )
    return prompt
