"""Image processors that exist for torchvision only, on torch alone.

Their own steps (how many tiles, which crops) are the real ones. Of torchvision they need a resize
and a normalisation, and those two are done by torch here.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch
from transformers.image_processing_backends import TorchvisionBackend


class OnTorch(TorchvisionBackend):
    """The back end with nearest neighbour as its only filter."""

    def resize(self, image, size, resample=None, **_options):
        resized = torch.nn.functional.interpolate(
            image.float(), (size.height, size.width), mode="nearest-exact"
        )
        return resized.to(image.dtype)

    def normalize(self, image, mean, std, **_options):
        return (image - mean[:, None, None]) / std[:, None, None]


# It stands for torchvision's, whose steps a family knows by their module.
OnTorch.resize.__module__ = TorchvisionBackend.__module__


def on_torch(model: str, name: str) -> type:
    """The image processor `name` of a model's folder in transformers, without torchvision."""
    full = f"transformers.models.{model}.image_processing_{model}"
    stubs = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
    absent = [stub for stub in stubs if stub not in sys.modules]
    try:
        for stub in absent:
            sys.modules[stub] = ModuleType(stub)
        sys.modules["torchvision.transforms.v2"].functional = ModuleType("functional")
        real = getattr(importlib.import_module(full), name)
    finally:
        for stub in absent:
            del sys.modules[stub]
    return type(name, (real, OnTorch), {})
