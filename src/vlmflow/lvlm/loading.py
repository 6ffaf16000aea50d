"""Open a model by name: bundled, on the hub, or in a local directory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging

from vlmflow.errors import InputError, ModelError, Note, VlmflowError, reason
from vlmflow.lvlm.model_names import model_source


def open_model(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Open an LVLM, in evaluation mode, and its processor; see :func:`vlmflow.api.load`."""
    if device is not None and device_map is not None:
        raise InputError("device and device_map exclude each other: give only one of them")
    if device_map is not None and find_spec("accelerate") is None:
        raise ModelError("device_map needs accelerate: pip install accelerate, or give device=...")
    if device_map is not None:
        _require_values(device_map)
    place = None if device_map is not None else _device(device)
    weights = _dtype(dtype)
    source, local = model_source(name)
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    if revision is not None:
        if local:
            raise InputError(f"revision={revision!r} is for hub models, but {name} is a directory")
        shared["revision"] = revision
    open_processor: Any = AutoProcessor.from_pretrained
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        require_image_text_to_text(config, str(name), trust_remote_code)
        processor = open_processor(source, **shared)
        if getattr(processor, "image_processor", None) is None and _lacks_torchvision():
            raise ImportError("torchvision")  # without it, transformers hands out a part of it
        with _no_bar() if local else nullcontext():
            opened: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                output_loading_info=True,
                config=config,
                dtype=weights,
                device_map=device_map,
                attn_implementation=attn_implementation,
                **shared,
            )
        model, found = opened
        _require_weights(model, found["missing_keys"], str(name))
        if place is not None:
            model.to(place)
    except VlmflowError:
        raise
    # What transformers, safetensors and torch raise for files they cannot use has no common base.
    except Exception as error:
        where = "" if local else " (no directory here, so the hub was asked)"
        raise ModelError(f"cannot open {name}{where}: {_reason(error)}") from error
    return model, processor


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers' bar away: opening a directory takes seconds."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    # What torch raises for a malformed name, a build without the back end, and a back end that
    # cannot allocate has no common base; nothing else is done in this block.
    except Exception as error:
        raise InputError(f"device={str(device)!r} cannot be used: {reason(error)}") from error
    if chosen.type == "meta":
        raise InputError("device='meta' holds no values, so no model runs on it; give cpu or cuda")
    if chosen.type == "cpu" and chosen.index:
        raise InputError(f"device={str(device)!r}, but there is only one cpu; give cpu")
    return chosen


def _require_values(device_map: str | dict[str, Any]) -> None:
    """Refuse a map to the device without values."""
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    if "meta" in map(str, places):
        raise InputError(
            f"device_map={device_map!r} puts weights on 'meta', which holds no values; give cpu, "
            "disk, a GPU or 'auto'"
        )


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto":
        return "auto"
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise InputError(
            f"dtype={str(dtype)!r} is not a floating point type: use auto, float32, "
            "bfloat16, float16"
        )
    return chosen


def _require_weights(model: Any, missing: Collection[str], name: str) -> None:
    """Refuse a decoder that is random in part; say so of anything else that is.

    transformers fills in what a checkpoint lacks: sound for a pooling head that nothing uses, and
    an answer without meaning for a layer of the language model.
    """
    if not missing:
        return
    of_decoder = {id(weights) for weights in model.get_decoder().parameters()}
    lost = {key: weights for key, weights in model.named_parameters() if key in missing}
    decoding = [key for key, weights in lost.items() if id(weights) in of_decoder]
    if decoding:
        raise ModelError(
            f"{name} lacks weights of its language model, {len(decoding)} in all (the first is "
            f"{decoding[0]}): its config.json and its weights do not belong together"
        )
    if lost:
        warnings.warn(
            f"{name} lacks weights outside its language model, which are random now: {len(lost)} "
            f"in all, {next(iter(lost))} the first",
            Note,
            stacklevel=4,
        )


def require_image_text_to_text(config: Any, name: str, trust_remote_code: bool) -> None:
    """Refuse a model that does not take pictures and answer in text, as ModelError."""
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return
    own_code = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if not (own_code and trust_remote_code):
        raise ModelError(
            f"{name} is of type {config.model_type!r}, which transformers does not list as an "
            "image-text-to-text model: give one that takes pictures and answers in text"
        )


def _reason(error: BaseException) -> str:
    """Say why a model cannot be opened, or what to install where a library is missing."""
    # Besides ImportError, transformers raises what it likes where a class cannot be loaded.
    if "torchvision" in str(error).lower() and _lacks_torchvision():
        return "its processor needs torchvision: pip install torchvision"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    return reason(error)


def _lacks_torchvision() -> bool:
    return find_spec("torchvision") is None
