"""Image processors of the torchvision back end, and video processors, on torch alone.

Their own steps (how many tiles, which crops, how much padding) are the real ones. What they need of
torchvision, a resize, a normalisation, padding and a crop, torch does here; nearest neighbour is
the only filter.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from types import ModuleType, SimpleNamespace

import torch
from transformers import image_processing_backends, video_processing_utils
from transformers.utils import is_torchvision_available


def _resize(image, size, **_options):
    flat = image.float().reshape(-1, 1, *image.shape[-2:])
    resized = torch.nn.functional.interpolate(flat, tuple(size), mode="nearest-exact")
    return resized.reshape(*image.shape[:-2], *size).to(image.dtype)


def _normalize(image, mean, std, **_options):
    mean, std = (torch.as_tensor(value)[:, None, None] for value in (mean, std))
    return (image - mean) / std


def _pad(image, padding, **_options):
    left, top, right, bottom = padding  # with a constant; which one never matters here
    return torch.nn.functional.pad(image, (left, right, top, bottom))


def _crop(image, top, left, height, width):
    return image[..., top : top + height, left : left + width]


def _grayscale_to_rgb(video):
    return video  # every frame is RGB already


FUNCTIONAL = ModuleType("functional")
for function in (_resize, _normalize, _pad, _crop, _grayscale_to_rgb):
    setattr(FUNCTIONAL, function.__name__[1:], function)
FILTERS = defaultdict(lambda: "nearest")
FUNCTIONAL.InterpolationMode = SimpleNamespace(LANCZOS="lanczos", BILINEAR="bilinear")


def on_torch(model: str, name: str, kind: str = "image") -> type:
    """The image or video processor `name` of a model's folder in transformers, without
    torchvision."""
    full = f"transformers.models.{model}.{kind}_processing_{model}"
    if is_torchvision_available():
        return getattr(importlib.import_module(full), name)
    names = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
    stubs = {name: ModuleType(name) for name in names}
    stubs[f"{names[-1]}.functional"] = stubs[names[-1]].functional = FUNCTIONAL
    modules = {name: sys.modules[name] for name in stubs if name in sys.modules}
    backend = vars(image_processing_backends)
    backend["tvF"] = FUNCTIONAL
    backend["pil_torch_interpolation_mapping"] = FILTERS
    vars(video_processing_utils)["tvF"] = FUNCTIONAL
    try:
        sys.modules.update(stubs)
        return getattr(importlib.import_module(full), name)
    finally:
        sys.modules.update(modules)
        for name in stubs.keys() - modules.keys():
            del sys.modules[name]


def video_on_torch(model: str, name: str, **settings: object) -> object:
    """A video processor with settings of its own."""
    return on_torch(model, name, "video")(**settings)


def same_on_torch(processor):
    """The torchvision twin of an image processor of the PIL back end, with its settings."""
    processor_type = type(processor)
    settings = {name: value for name, value in vars(processor).items() if name[0] != "_"}
    model = processor_type.__module__.split(".")[2]
    return on_torch(model, processor_type.__name__.removesuffix("Pil"))(**settings)
