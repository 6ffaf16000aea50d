"""Integrated gradients, on the image embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.gradient_input import GradientInput
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.other_inputs import Path


@dataclass(frozen=True)
class IntegratedGradients(GradientInput):
    """``sum_k (x_k - x'_k) int d target / d x_k (x' + a (x - x')) da``: one map, signed.

    The integral goes from ``a = 0`` to 1. Sundararajan et al. 2017, arXiv 1703.01365, eq. 1. The
    values of all image tokens add up to the target with the picture less that at the baseline
    (completeness), as closely as ``steps`` points integrate. ``x`` is what the first decoder layer
    is given; features that a model adds again in later layers (DeepStack) stay as they are.

    Parameters
    ----------
    steps : int
        Points on the path, by Gauss and Legendre's rule: a forward pass each, and a backward pass
        per target.
    baseline : str
        ``x'``: ``"mean"``, every image token is the mean of the prompt's image tokens; or
        ``"zero"``. Decoders that begin with a norm see the same picture all along a path from zero,
        however faint, and its very beginning holds all of the change: that takes many more steps.
    """

    name = "integrated_gradients"
    summary = "gradients integrated from a blank to the image embeddings, signed (steps, baseline)"
    label = "integrated gradients"
    source = "Axiomatic Attribution for Deep Networks (Sundararajan et al. 2017, arXiv 1703.01365)"

    steps: int = 32
    baseline: str = "mean"

    def __post_init__(self) -> None:
        Path(self.steps, self.baseline)

    @property
    def path(self) -> Path:
        """From the baseline to the picture; see :attr:`Signal.path`."""
        return Path(self.steps, self.baseline)

    def of_layer(self, seen: LayerView) -> Tensor:
        """Multiply at one point of the path; see :meth:`Signal.of_layer`."""
        return (seen.difference * seen.gradient).sum(1)
