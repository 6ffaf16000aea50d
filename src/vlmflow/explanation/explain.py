"""Explain one answer: generate it if need be, measure, and put the result together."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image

from vlmflow.errors import InputError
from vlmflow.explanation.smoothing import (
    COPIES_AT_ONCE,
    check_noise,
    count_smooth_passes,
    smoothed_cam,
)
from vlmflow.flow.axes import WHOLE_ANSWER
from vlmflow.flow.features import POST_ATTENTION_NORM, check_hook
from vlmflow.flow.measure import EMPTY, OK, Measurement, count_passes, measure
from vlmflow.flow.signals import DEFAULT_SIGNALS, check_signals
from vlmflow.flow.signals.flow_map import check_flow_layers, flow_map
from vlmflow.flow.targets import check_target
from vlmflow.lvlm.build_layout import recorded_layout
from vlmflow.lvlm.chat import VisualSource
from vlmflow.result.information_flow import InformationFlow
from vlmflow.version import __version__

if TYPE_CHECKING:
    from vlmflow.lvlm.model import LVLM
    from vlmflow.lvlm.prompt import Prompt

DISPLAY_SIDE = 1024
"""Longest side in pixels of the picture copies in a result."""

SMOOTH = "llava_cam_smooth"


def explain(
    vlm: LVLM,
    images: VisualSource | Sequence[VisualSource] | None,
    question: str | Sequence[Mapping[str, Any]],
    answer: str | Sequence[int] | None = None,
    *,
    signals: Sequence[str] = DEFAULT_SIGNALS,
    target: str = "logprob",
    per_token: bool = True,
    smooth: int = 0,
    noise: float = 0.1,
    seed: int = 0,
    flow_layers: int | None = None,
    max_new_tokens: int = 64,
    low_memory: bool = False,
    cam_hook: str = POST_ATTENTION_NORM,
    progress: Callable[[int, int], None] | None = None,
) -> InformationFlow:
    """Measure which tokens an answer draws on, in every decoder layer.

    One forward pass, and one backward pass per answer token (one in all without ``per_token``).
    The model is left exactly as found, also when something raises.

    Parameters
    ----------
    vlm : LVLM
        The model.
    images, question, answer
        As for :meth:`vlmflow.lvlm.model.LVLM.prepare`. Without an answer the model gives its own
        (greedy), and the very tokens it gave are explained.
    signals : sequence of str
        Names from :data:`vlmflow.flow.signals.SIGNALS`.
    target : str
        ``"logprob"``, ``"logit"`` (the paper's) or ``"margin"``.
    per_token : bool
        Explain each answer token beside the whole answer.
    smooth : int
        Noisy pictures to average LLaVA-CAM over; adds the map ``"llava_cam_smooth"``. Costs the
        passes of as many further explanations, a few to a batch.
    noise : float
        Standard deviation of the noise in normalised pixel values.
    seed : int
        Seed of the noise.
    flow_layers : int, optional
        Sum the flow map over this many first layers (those before the cliff); None: all.
    max_new_tokens : int
        Longest answer to generate.
    low_memory : bool
        Recompute layers in the backward pass instead of keeping their activations.
    cam_hook : str
        Where LLaVA-CAM reads features, see :func:`vlmflow.flow.features.watch_features`.
    progress : callable, optional
        Called with ``(passes done, passes in all)`` after each pass.

    Returns
    -------
    InformationFlow

    Raises
    ------
    InputError
        For an option, picture, question or answer that cannot be used, or an empty answer.
    ModelError
        If the model cannot be followed, or its logits or gradients are not finite.
    """
    check_signals(signals)
    names = tuple(dict.fromkeys(signals))
    check_target(target)
    check_noise(smooth, noise)
    check_flow_layers(flow_layers, vlm.num_layers)
    check_hook(vlm.decoder_layers, cam_hook)
    if SMOOTH in names and not smooth:
        raise InputError(f"signal {SMOOTH!r} needs a number of noisy pictures, such as smooth=16")
    if smooth and SMOOTH not in names:
        names = (*names, SMOOTH)

    prompt = vlm.prepare(images, question)
    generated = answer is None
    if answer is None:
        answer = vlm.generate_ids(prompt, max_new_tokens=max_new_tokens)
        if not answer:
            raise InputError(
                f"{vlm.name} ends its answer before the first token, so there is nothing to "
                f"explain: pass answer=..."
            )
    prompt = vlm.with_answer(prompt, answer)

    at_once = 1 if low_memory else COPIES_AT_ONCE
    passes = count_passes([prompt.layout], per_token) + count_smooth_passes(
        prompt.layout, smooth, per_token, at_once
    )
    done = 0

    def on_pass() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, passes)

    wanted = tuple(name for name in names if name not in (SMOOTH, "flow"))
    extra = ("saliency",) if "flow" in names and "saliency" not in wanted else ()
    with recorded_layout(vlm.model, vlm.processor, vlm.family, prompt) as layout_after_run:
        measured = measure(
            vlm.model,
            vlm.decoder_layers,
            prompt.inputs,
            [prompt.layout],
            signals=wanted + extra,
            target=target,
            per_token=per_token,
            cam_hook=cam_hook,
            low_memory=low_memory,
            on_pass=on_pass,
        )[0]
    prompt = replace(prompt, layout=layout_after_run())
    maps, flags = dict(measured.maps), dict(measured.flags)
    if "flow" in names:
        maps["flow"] = flow_map(maps["saliency"], flow_layers)[None]
        flags["flow"] = np.where((maps["flow"] > 0).any(-1), OK, EMPTY).astype(np.int8)
    if SMOOTH in names:
        maps[SMOOTH], flags[SMOOTH] = smoothed_cam(
            vlm.model,
            vlm.decoder_layers,
            prompt.inputs,
            prompt.layout,
            copies=smooth,
            noise=noise,
            seed=seed,
            target=target,
            per_token=per_token,
            cam_hook=cam_hook,
            low_memory=low_memory,
            on_pass=on_pass,
            at_once=at_once,
        )
    settings = {
        "signals": list(names),
        "target": target,
        "per_token": per_token,
        "smooth": smooth,
        "noise": noise,
        "seed": seed,
        "flow_layers": flow_layers,
        "max_new_tokens": max_new_tokens,
        "low_memory": low_memory,
        "cam_hook": cam_hook,
        "answer_generated": generated,
        "target_values": measured.target_values.tolist(),
        "device": str(vlm.device),
        "model": vlm.config_summary(),
    }
    return _result(vlm, question, prompt, measured, names, maps, flags, per_token, settings)


def _result(
    vlm: LVLM,
    question: str | Sequence[Mapping[str, Any]],
    prompt: Prompt,
    measured: Measurement,
    names: tuple[str, ...],
    maps: dict[str, npt.NDArray[np.float32]],
    flags: dict[str, npt.NDArray[np.int8]],
    per_token: bool,
    settings: dict[str, Any],
) -> InformationFlow:
    layout = prompt.layout
    tokens = tuple(layout.tokens[position] for position in layout.answer_positions)
    return InformationFlow(
        model=vlm.name,
        question=question if isinstance(question, str) else _last_text(question),
        prompt=prompt.text,
        answer=prompt.answer or "",
        answer_tokens=tokens,
        targets=(WHOLE_ANSWER, *tokens) if per_token else (WHOLE_ANSWER,),
        layout=layout,
        pictures=tuple(_display_copy(image) for image in prompt.images),
        attention_share=measured.attention_share,
        saliency_mean=measured.saliency_mean,
        saliency_sum=measured.saliency_sum,
        maps={name: maps[name] for name in names},
        flags={name: flags[name] for name in names},
        settings=settings,
        versions={
            "vlmflow": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )


def _last_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Text of a conversation's last turn."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")


def _display_copy(image: Image.Image) -> npt.NDArray[np.uint8]:
    copy = image.copy()
    copy.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
    return np.array(copy, dtype=np.uint8)
