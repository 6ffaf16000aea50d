"""Explain an answer: generate it if need be, measure, and put the result together."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.explanation.answering import Asked, Question, answered_together
from vlmflow.explanation.combined_map import combined_map, with_parts
from vlmflow.explanation.own_passes import own_map
from vlmflow.explanation.path import path_map
from vlmflow.explanation.smoothing import COPIES_AT_ONCE, smoothed_map
from vlmflow.explanation.together import SharedMeasurement, measured_together, signals_at_once
from vlmflow.explanation.words import texts_of
from vlmflow.flow.axes import WHOLE_ANSWER
from vlmflow.flow.measure import count_passes
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.map_info import MapInfo
from vlmflow.result.text_attention import TextAttention
from vlmflow.version import __version__

DISPLAY_SIDE = 1024
"""Longest side in pixels of the picture copies in a result."""

BATCH = "batch"
"""Setting of a result that says how many prompts were answered and measured together."""


def explain(
    vlm: LVLM,
    images: VisualSource | Sequence[VisualSource] | None,
    question: Question,
    answer: str | Sequence[int] | None = None,
    options: ExplainOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> InformationFlow:
    """Measure which tokens an answer draws on; see :meth:`vlmflow.LVLM.explain`."""
    check_untruncated(vlm.model, "an explanation")
    options = options or ExplainOptions()
    options.check_model(vlm.decoder_layers)
    one = Asked(vlm.prepare(images, question), question, answer)
    (answered,) = answered_together(vlm, [one], options)
    if isinstance(answered, InputError):
        raise answered
    passes = _count_passes(answered.prompt, options)
    done = 0

    def on_pass() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, passes), passes)

    (measured,) = measured_together(vlm, [answered], options, on_pass=on_pass)
    flow = information_flow(vlm, measured, options, on_pass=on_pass)
    done = max(done, passes - 1)  # a search may have ended early
    on_pass()
    return flow


def information_flow(
    vlm: LVLM,
    shared: SharedMeasurement,
    options: ExplainOptions,
    *,
    on_pass: Callable[[], None] | None = None,
) -> InformationFlow:
    """Run what signals do not share with others, and put the result of one answer together.

    Parameters
    ----------
    vlm, shared, options
        The model, what :func:`~vlmflow.explanation.together.measured_together` measured with it,
        and the options of that.
    on_pass : callable, optional
        Called after each pass.

    Raises
    ------
    InputError, ModelError
        For a signal that fits neither the model nor the prompt.
    """
    answered, measured = shared.answered, shared.measured
    prompt, signals = answered.prompt, with_parts(options).named
    at_once = _copies_at_once(options)
    maps, flags = dict(measured.maps), dict(measured.flags)
    for name, signal in signals.items():
        if signal.noise is not None:
            maps[name], flags[name] = smoothed_map(
                vlm, prompt, signal, options, on_pass=on_pass, at_once=at_once
            )
        elif signal.path is not None:
            maps[name], flags[name] = path_map(
                vlm, prompt, signal, options, on_pass=on_pass, at_once=at_once
            )
        elif signal.has_own_passes:
            maps[name], flags[name] = own_map(vlm, prompt, signal, options, on_pass=on_pass)
    own = {signal: (maps[name], flags[name]) for name, signal in signals.items()}
    for signal in options.named.values():
        if signal.made_of:
            own[signal] = combined_map(signal, own)
    layout = prompt.layout
    tokens = tuple(layout.tokens[position] for position in layout.answer_positions)
    whole = WHOLE_ANSWER if answered.words is None else answered.words.text
    return InformationFlow(
        model=vlm.name,
        question=" ".join(texts_of(answered.question)),
        prompt=prompt.text,
        answer=prompt.answer or "",
        words=answered.words,
        answer_tokens=tokens,
        targets=(whole, *tokens) if options.per_token else (whole,),
        layout=layout,
        pictures=tuple(_display_copy(image) for image in prompt.images),
        attention_share=measured.attention_share,
        saliency_mean=measured.saliency_mean if options.gradients else None,
        saliency_sum=measured.saliency_sum if options.gradients else None,
        picture_effect=shared.effect,
        text_attention=TextAttention(shared.rows, measured.kept_attention),
        maps={name: own[signal][0] for name, signal in options.named.items()},
        flags={name: own[signal][1] for name, signal in options.named.items()},
        about={name: _info(name, signal, vlm.num_layers) for name, signal in options.named.items()},
        settings={
            **options.to_json(),
            "answer_generated": answered.generated,
            "answer_ids": list(prompt.answer_ids),
            BATCH: shared.batch,
            "target_values": measured.target_values.tolist(),
            "device": str(vlm.device),
            "model": vlm.config_summary(),
        },
        versions={
            "vlmflow": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )


def _copies_at_once(options: ExplainOptions) -> int:
    return 1 if options.low_memory else COPIES_AT_ONCE


def _count_passes(prompt: Prompt, options: ExplainOptions) -> int:
    """Count all passes about one answer, a batch of copies as one."""
    signals = with_parts(options).named
    shared = count_passes([prompt.layout], options, signals_at_once(options).values())
    own = (_extra_passes(s, prompt, options, _copies_at_once(options)) for s in signals.values())
    return shared + 1 + sum(own)  # one without the picture


def _extra_passes(signal: Signal, prompt: Prompt, options: ExplainOptions, at_once: int) -> int:
    """Count what a signal runs beside the passes that all share, a batch as one."""
    if signal.has_own_passes:
        return signal.passes().forward
    copies = 0
    if signal.noise is not None:
        copies = signal.noise.copies
    elif signal.path is not None:
        copies = signal.path.steps
    return math.ceil(copies / at_once) * count_passes([prompt.layout], options, [signal])


def _info(name: str, signal: Signal, layers: int) -> MapInfo:
    whole = signal.whole or signal.has_own_passes
    summed = signal.summed_layers(layers) if signal.summed else range(layers)
    span = (summed.start, summed.stop - 1) if signal.summed else None
    # Only two signals of one class have their parameters in the name.
    parameters = name.removeprefix(signal.known_as())
    return MapInfo(
        label=signal.shown_as() + (f" {parameters}" if parameters and not signal.made_of else ""),
        summary=signal.in_one_line(),
        source=signal.source,
        colour=signal.colour,
        summed=(0, layers - 1) if whole else span,
        whole=whole,
        searched_with=signal.searched_with,
    )


def _display_copy(image: Image.Image) -> npt.NDArray[np.uint8]:
    copy = image.copy()
    copy.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
    return np.array(copy, dtype=np.uint8)
