"""Low memory: every decoder layer keeps its input only and is recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def replaced_forward(module: nn.Module, replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace ``forward`` of this one module, and put back what was there.

    ``replacement`` is called with the module's own forward before its arguments. It is set on the
    instance, so that other modules of its class (and threads that run them) see nothing; an
    instance attribute that was there before (as accelerate sets) is kept and put back.
    """
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = partial(replacement, module.forward)
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # No dropout is active (the model is in eval mode), so there is no random state to keep.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextmanager
def recomputed_layers(layers: nn.ModuleList) -> Iterator[None]:
    """Recompute each layer in the backward pass instead of keeping its activations."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced_forward(layer, _checkpointed))
        yield
