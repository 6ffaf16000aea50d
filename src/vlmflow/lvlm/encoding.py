"""From a prompt's text and what it shows to the model's inputs, by the model's own processor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from vlmflow.errors import InputError, ModelError, VlmflowError, is_out_of_memory, reason
from vlmflow.lvlm.chat import Visual
from vlmflow.lvlm.families import Family, families_by_type
from vlmflow.lvlm.frame_choice import read_video
from vlmflow.lvlm.video_files import VideoFile
from vlmflow.lvlm.videos import Video

_COUNTED_BY = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
"""What processors count image tokens by, and old files of them leave out."""


def read_videos(
    visuals: Sequence[Visual | VideoFile], family: Family, model_type: str, processor: Any
) -> tuple[Visual, ...]:
    """Take from video files the frames that a model is shown, and return everything it is shown.

    Raises
    ------
    InputError
        If the model takes no videos, or not these; if its processor cannot process videos; if it is
        told the time of frames, but a video has no times; or if a file cannot be read.
    """
    if not any(isinstance(visual, Video | VideoFile) for visual in visuals):
        return tuple(visual for visual in visuals if not isinstance(visual, VideoFile))
    if not family.takes_videos:
        takers = sorted(name for name, other in families_by_type().items() if other.takes_videos)
        raise InputError(
            f"models of type {model_type!r} take no videos here: ask about pictures, or one of "
            f"type {', '.join(takers)}"
        )
    if getattr(processor, "video_processor", None) is None:
        raise InputError(
            f"the processor of models of type {model_type!r} has no video processor, which needs "
            "torchvision: pip install torchvision"
        )
    opened = tuple(
        read_video(visual, processor.video_processor) if isinstance(visual, VideoFile) else visual
        for visual in visuals
    )
    videos = [visual for visual in opened if isinstance(visual, Video)]
    if _tells_time(processor) and any(video.seconds is None for video in videos):
        raise InputError(
            f"models of type {model_type!r} are told the time of every frame: pass "
            "vlmflow.Video(frames, seconds=[...])"
        )
    family.check_videos([len(video.frames) for video in videos], len(visuals) - len(videos))
    return opened


def in_prompt_order(
    text: str, visuals: Sequence[Visual], placeholders: Mapping[str, str], name: str
) -> tuple[Visual, ...]:
    """Sort pictures and videos as their placeholders stand in a prompt.

    A chat template may put all pictures of a turn before its videos. ``name`` is what messages call
    the model.

    Raises
    ------
    ModelError
        If there is not one placeholder for each.
    """
    kinds = {token: kind for kind, token in placeholders.items()}
    longest_first = sorted(kinds, key=len, reverse=True)
    order = [kinds[token] for token in re.findall("|".join(map(re.escape, longest_first)), text)]
    waiting: dict[str, list[Visual]] = {
        "image": [visual for visual in visuals if not isinstance(visual, Video)],
        "video": [visual for visual in visuals if isinstance(visual, Video)],
    }
    for kind, group in waiting.items():
        if order.count(kind) != len(group):
            raise ModelError(
                f"the chat template of {name} places {order.count(kind)} {kind}(s) where the "
                f"question shows {len(group)}: it does not take pictures like this"
            )
    return tuple(waiting[kind].pop(0) for kind in order)


def encode(
    text: str,
    visuals: Sequence[Visual],
    processor: Any,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
) -> dict[str, torch.Tensor]:
    """Return the processor's output for a prompt with placeholders, and what it shows in its order.

    It goes to the model's device, pixels in its dtype. ``name`` is what messages call the model.

    Raises
    ------
    InputError
        If the processor refuses them.
    """
    start = processor.tokenizer.bos_token
    # As apply_chat_template does: a template that writes the start token gets no second one.
    options: dict[str, Any] = (
        {"add_special_tokens": False} if start and text.startswith(start) else {}
    )
    pictures = [visual for visual in visuals if isinstance(visual, Image.Image)]
    videos = [visual for visual in visuals if isinstance(visual, Video)]
    if pictures:
        options["images"] = [pictures]
    if videos:
        options["videos"] = [list(video.frames) for video in videos]
        options["videos_kwargs"] = _video_options(processor, videos)
    try:
        encoded = processor(text=[text], return_tensors="pt", **options)
    except VlmflowError:
        raise
    # What processors raise for settings, pictures and texts they cannot use has no common base.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        unset = [f"{key}=None" for key in _COUNTED_BY if getattr(processor, key, "") is None]
        raise InputError(
            f"the processor of {name} refuses this prompt: {reason(error)}"
            + (f"; it has {' and '.join(unset)}: give it the model's own" if unset else "")
        ) from error
    return {
        # Times are floats, too, and would be others in 16 bits.
        key: tensor.to(device, dtype if key.startswith("pixel_values") else tensor.dtype)
        for key, tensor in encoded.items()
        # Some processors add labels: with them a model computes a loss that nobody asked for.
        if isinstance(tensor, torch.Tensor) and key != "labels"
    }


def _video_options(processor: Any, videos: Sequence[Video]) -> dict[str, Any]:
    """Tell a video processor to take every frame, and when each was taken."""
    options: dict[str, Any] = {
        "do_sample_frames": False,
        # It would take a video that is 1 or 3 pixels high for one whose colours come first.
        "input_data_format": "channels_last",
    }
    if _tells_time(processor):
        options["video_metadata"] = [video.metadata() for video in videos]
    return options


def _tells_time(processor: Any) -> bool:
    """Tell whether a processor asks for a video's metadata, to write times from it."""
    settings = getattr(processor, "videos_kwargs", None) or {}
    return bool(settings.get("return_metadata"))
