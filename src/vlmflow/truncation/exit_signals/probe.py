"""A linear probe on the states of the last token and of the text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.errors import InputError
from vlmflow.truncation.exit_signals.signal import ExitSignal
from vlmflow.truncation.exit_signals.view import ExitView


@dataclass(frozen=True)
class Probe(ExitSignal):
    """``w . [x_last, mean of x_text] + b`` at the input of a layer, each layer its own.

    Parameters
    ----------
    weights : tuple of (layer, b, w)
        Fitted; w has one number per channel of the last state, then of the mean.
    """

    name = "probe"
    summary = "a linear probe on the last token's and the mean text token's state"
    source = "linear probes (Alain and Bengio 2016, arXiv 1610.01644)"
    reads = "hidden"

    weights: tuple[tuple[int, float, tuple[float, ...]], ...] = ()

    @property
    def title(self) -> str:
        """Its name: the weights are too many to show."""
        return self.known_as()

    def value(self, seen: ExitView) -> Tensor:
        """Weigh; see :meth:`ExitSignal.value`."""
        for layer, bias, weights in self.weights:
            if layer == seen.layer:
                width = len(seen.last)
                if len(weights) != 2 * width:
                    raise InputError(
                        f"the probe of layer {layer} has {len(weights)} weights, but states of "
                        f"{width} channels take {2 * width}"
                    )
                both = seen.last.new_tensor(weights)
                return both[:width] @ seen.last + both[width:] @ seen.mean_text + bias
        raise InputError(f"the probe has no weights for layer {seen.layer}; fit it there first")
