"""A model without its weights: what its config alone says, for computing with sizes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmflow.errors import ModelError, reason
from vlmflow.lvlm.loading import require_image_text_to_text
from vlmflow.lvlm.model_names import model_source
from vlmflow.lvlm.model_parts import decoder_layers


def open_skeleton(name: str, *, revision: str | None = None) -> tuple[Any, Any]:
    """Open a model's config and build it without values; return it and its decoder layers.

    Nothing of the weights is read, so a model of any size opens at once.

    Raises
    ------
    ModelError
        If there is no such model, or it is not an image-text-to-text model.
    """
    source, local = model_source(name)
    options = {} if revision is None else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local, **options)
    # What transformers raises for files it cannot use has no common base.
    except Exception as error:
        where = "" if local else " (no directory here, so the hub was asked)"
        raise ModelError(f"cannot open {name}{where}: {reason(error)}") from error
    require_image_text_to_text(config, name, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    return model, decoder_layers(model)
