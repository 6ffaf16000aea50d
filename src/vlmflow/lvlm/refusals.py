"""What a model refuses while it runs, in one sentence."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmflow.errors import ModelError, VlmflowError, is_out_of_memory, reason

_CALLS = ("torch.nn.modules.", "torch.utils.", "torch._tensor", "torch._compile", "transformers.")
"""Where calls of a model, its ``generate``, a recomputed layer or a backward pass begin."""

_MISMATCH = re.compile(
    r"(image|video).*tokens do not match\W+tokens: (\d+)\W+features:? (\d+)", re.IGNORECASE
)


@contextmanager
def model_refusals(model: Any) -> Iterator[None]:
    """Turn what a model raises into a ModelError that names it; errors of other code pass.

    What a model, its layers and torch raise where a configuration, a prompt or pixels do not
    fit has no common base.
    """
    try:
        yield
    except VlmflowError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or not _is_the_models(error):
            raise
        raise ModelError(_sentence(model, error)) from error


def _is_the_models(error: Exception) -> bool:
    """Whether it was raised in a model's call, and not by our code or that of a user."""
    names = [
        str(frame.f_globals.get("__name__", ""))
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    ours = [number for number, name in enumerate(names) if name.partition(".")[0] == "vlmflow"]
    beyond = names[ours[-1] + 1 :] if ours else []
    return bool(beyond) and beyond[0].startswith(_CALLS)


def _sentence(model: Any, error: Exception) -> str:
    config = getattr(model, "config", None)
    name = getattr(config, "name_or_path", "") or type(model).__name__
    match = _MISMATCH.search(str(error))
    if match is None:
        return f"{name} refuses this prompt: {reason(error)}"
    kind, tokens, features = match[1].lower(), int(match[2]), int(match[3])
    strategy = getattr(config, "vision_feature_select_strategy", None)
    return (
        f"{name} makes {_count(features, tokens, config)} {kind} features where its processor puts "
        f"{tokens} {kind} tokens: processor and model do not belong together; compare patch_size "
        "and what selects features"
        + ("" if strategy is None else f" (vision_feature_select_strategy is {strategy!r} here)")
    )


def _count(stated: int, tokens: int, config: Any) -> int:
    """Read a number of features: some models state that of all their values."""
    width: int | None = (
        getattr(config.get_text_config(), "hidden_size", None) if config is not None else None
    )
    if not width or stated % width:
        return stated
    # Of the two readings the one nearer to what was expected.
    return min(stated, stated // width, key=lambda count: max(count, tokens) / min(count, tokens))
