"""Explain one answer: generate it if need be, measure, and put the result together."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

from vlmflow.explanation.combined_map import combined_map, with_parts
from vlmflow.explanation.own_passes import own_map
from vlmflow.explanation.path import path_map
from vlmflow.explanation.smoothing import COPIES_AT_ONCE, smoothed_map
from vlmflow.explanation.without_picture import picture_effect
from vlmflow.explanation.words import explained_prompt, texts_of
from vlmflow.flow.axes import WHOLE_ANSWER
from vlmflow.flow.measure import count_passes, measure
from vlmflow.flow.options import ExplainOptions
from vlmflow.flow.signals.signal import Signal
from vlmflow.lvlm.as_found import check_untruncated
from vlmflow.lvlm.build_layout import recorded_layout
from vlmflow.lvlm.chat import VisualSource
from vlmflow.lvlm.model import LVLM
from vlmflow.lvlm.prompt import Prompt
from vlmflow.result.explained_words import ANSWER
from vlmflow.result.information_flow import InformationFlow
from vlmflow.result.map_info import MapInfo
from vlmflow.result.text_attention import TextAttention, kept_rows
from vlmflow.version import __version__

DISPLAY_SIDE = 1024
"""Longest side in pixels of the picture copies in a result."""


def explain(
    vlm: LVLM,
    images: VisualSource | Sequence[VisualSource] | None,
    question: str | Sequence[Mapping[str, Any]],
    answer: str | Sequence[int] | None = None,
    options: ExplainOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> InformationFlow:
    """Measure which tokens an answer draws on; see :meth:`vlmflow.LVLM.explain`."""
    check_untruncated(vlm.model, "an explanation")
    options = options or ExplainOptions()
    options.check_model(vlm.decoder_layers)
    prompt = vlm.prepare(images, question)
    return explain_prompt(vlm, prompt, question, answer, options, progress=progress)


def explain_prompt(
    vlm: LVLM,
    prompt: Prompt,
    question: str | Sequence[Mapping[str, Any]],
    answer: str | Sequence[int] | None,
    options: ExplainOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> InformationFlow:
    """Measure it for a question that is prepared; see :meth:`vlmflow.LVLM.explain`."""
    generated = answer is None and options.of == ANSWER
    prompt, words = explained_prompt(vlm, prompt, question, answer, options)

    signals = with_parts(options).named
    direct = {name: signal for name, signal in signals.items() if signal.in_one_pass}
    at_once = 1 if options.low_memory else COPIES_AT_ONCE
    passes = count_passes([prompt.layout], options, direct.values()) + 1  # one without the picture
    passes += sum(_extra_passes(own, prompt, options, at_once) for own in signals.values())
    done = 0

    def on_pass() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, passes), passes)

    rows = kept_rows(prompt.layout, vlm.num_layers)
    with recorded_layout(vlm.model, vlm.processor, vlm.family, prompt) as layout_after_run:
        measured = measure(
            vlm.model,
            vlm.decoder_layers,
            prompt.inputs,
            [prompt.layout],
            options,
            signals=direct,
            kept_rows=[rows],
            on_pass=on_pass,
        )[0]
    effect = picture_effect(vlm, prompt, measured.log_probabilities)
    prompt = replace(prompt, layout=layout_after_run())
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
    done = max(done, passes - 1)  # a search may have ended early
    on_pass()
    layout = prompt.layout
    tokens = tuple(layout.tokens[position] for position in layout.answer_positions)
    whole = WHOLE_ANSWER if words is None else words.text
    return InformationFlow(
        model=vlm.name,
        question=" ".join(texts_of(question)),
        prompt=prompt.text,
        answer=prompt.answer or "",
        words=words,
        answer_tokens=tokens,
        targets=(whole, *tokens) if options.per_token else (whole,),
        layout=layout,
        pictures=tuple(_display_copy(image) for image in prompt.images),
        attention_share=measured.attention_share,
        saliency_mean=measured.saliency_mean if options.gradients else None,
        saliency_sum=measured.saliency_sum if options.gradients else None,
        picture_effect=effect,
        text_attention=TextAttention(rows, measured.kept_attention),
        maps={name: own[signal][0] for name, signal in options.named.items()},
        flags={name: own[signal][1] for name, signal in options.named.items()},
        about={name: _info(name, signal, vlm.num_layers) for name, signal in options.named.items()},
        settings={
            **options.to_json(),
            "answer_generated": generated,
            "answer_ids": list(prompt.answer_ids),
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
