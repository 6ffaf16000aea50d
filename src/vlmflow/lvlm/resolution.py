"""The same model with another resolution: settings of its image processor, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from vlmflow.errors import InputError, reason
from vlmflow.lvlm.model import LVLM

Model = TypeVar("Model", bound=LVLM)


def with_image_settings(vlm: Model, settings: Mapping[str, Any]) -> Model:
    """Return the model with some settings of its image processor replaced.

    Weights are shared; the model and the processor that were given stay as they are.

    Parameters
    ----------
    vlm : LVLM
        The model.
    settings : mapping
        Names and values as in a ``preprocessor_config.json``, for instance
        ``{"size": {"shortest_edge": 3136, "longest_edge": 200704}}`` or ``{"max_patches": 4}``.

    Raises
    ------
    InputError
        If the image processor has no such setting, refuses its value, or never reads it because
        the processor overrides it at every call.
    """
    own = vlm.processor.image_processor
    possible = {*own.to_dict(), *getattr(own.valid_kwargs, "__annotations__", {})}
    overriding = getattr(vlm.processor, "images_kwargs", None) or {}
    for name in settings:
        if name in overriding:
            raise InputError(
                f"{type(vlm.processor).__name__} gives its image processor {name}="
                f"{overriding[name]!r} at every call, whatever that is set to; leave {name!r} out"
            )
        if name not in possible:
            raise InputError(
                f"{type(own).__name__} has no setting {name!r}; it has "
                f"{', '.join(sorted(set(own.to_dict()) - _NOT_SETTINGS))}"
            )
    try:
        image_processor = type(own).from_dict(own.to_dict(), **settings)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{type(own).__name__} refuses the settings {dict(settings)}: {reason(error)}"
        ) from error
    processor = copy.copy(vlm.processor)
    processor.image_processor = image_processor
    changed = copy.copy(vlm)
    changed.processor = processor
    return changed


_NOT_SETTINGS = {"image_processor_type", "processor_class", "data_format", "_processor_class"}
