"""Using a model and leaving it as found: by one thread at a time, with all its state put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from vlmflow.errors import InputError
from vlmflow.lvlm.refusals import model_refusals

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()
_truncated: WeakSet[nn.Module] = WeakSet()


@contextmanager
def as_found(model: nn.Module, *, frozen: bool = False) -> Iterator[None]:
    """Switch a model to evaluation for the length of a block, and put everything back afterwards.

    Everything is every attribute and buffer that a module had: training flags, and what a forward
    pass leaves behind (``rope_deltas`` of Qwen-VL, which a running conversation needs; tables
    of dynamic rotary embeddings). Attributes that it did not have stay: transformers marks with
    them what it has set up once. Hooks would not be seen by compiled modules: they run uncompiled
    meanwhile. Another thread that wants the model waits. What the model itself raises becomes a
    ModelError (:func:`vlmflow.lvlm.refusals.model_refusals`).

    Parameters
    ----------
    model : nn.Module
        Any; its parts are its own.
    frozen : bool
        No parameter requires a gradient meanwhile.
    """
    with _alone(model):
        state = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
        trainable = [  # the flag of a tensor made under inference_mode cannot be set again
            p for p in model.parameters() if frozen and p.requires_grad and not p.is_inference()
        ]
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            for module, _, _ in state:
                module.training = False
                if _is_compiled(module):
                    module._compiled_call_impl = None
            with model_refusals(model):
                yield
        finally:
            for module, attributes, buffers in state:
                _restore(vars(module), attributes)
                _restore(module._buffers, buffers)
            for parameter in trainable:
                parameter.requires_grad_(True)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled modules as they are written: hooks that came after compiling are not seen."""
    compiled = [
        (module, vars(module)["_compiled_call_impl"])
        for module in model.modules()
        if _is_compiled(module)
    ]
    try:
        for module, _ in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


@contextmanager
def marked_truncated(model: nn.Module) -> Iterator[None]:
    """Say that a model is truncated for the length of a block.

    Raises
    ------
    InputError
        If it is already.
    """
    with _alone(model):
        if model in _truncated:
            raise InputError(
                "the model is truncated already; leave that block first, or give one truncation "
                "several stages"
            )
        _truncated.add(model)
    try:
        yield
    finally:
        _truncated.discard(model)


def check_untruncated(model: nn.Module, action: str) -> None:
    """Refuse to measure a model inside a truncation block."""
    if model in _truncated:
        raise InputError(
            f"{action} measures the untouched model, but this one is inside a truncation block; "
            "leave the block first"
        )


def bare_model(model: Any) -> Any:
    """Return the transformers model inside ``torch.compile``'s and PEFT's wrappers."""
    while True:
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if inner is None and hasattr(type(model), "get_base_model"):
            inner = model.get_base_model()
        if inner is None:
            return model
        model = inner


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    with _locks_guard:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield


def _is_compiled(module: nn.Module) -> bool:
    return vars(module).get("_compiled_call_impl") is not None


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Put back what differs."""
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value
