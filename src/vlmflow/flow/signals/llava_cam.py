"""LLaVA-CAM: Grad-CAM on the features of a decoder layer at the image positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vlmflow.flow.features import check_hook
from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.signal import POST_ATTENTION_NORM, Signal


@dataclass(frozen=True)
class LlavaCam(Signal):
    """LLaVA-CAM: ``Heat = ReLU( sum_k alpha_k A_k )`` (paper eq. 1-3).

    Nothing is normalised, so layers can be compared.

    Parameters
    ----------
    hook : str
        Where features are read, see :func:`vlmflow.flow.features.watch_features`.
    """

    name = "llava_cam"
    summary = "Grad-CAM on each layer's image tokens: channels weighted by gradient, positive part"
    label = "LLaVA-CAM"
    source = "From Redundancy to Relevance (NAACL 2025), eq. 1-3"
    reads = "features"

    hook: str = POST_ATTENTION_NORM

    @property
    def hook_point(self) -> str:
        """Where features are read; see :attr:`Signal.hook_point`."""
        return self.hook

    def check_model(self, layers: nn.ModuleList) -> None:
        """Refuse a hook point that a layer does not have."""
        check_hook(layers, self.hook)

    def pool(self, gradient: Tensor) -> Tensor:
        """``alpha_k``: mean over the image tokens of ``G_k = d target / d A_k``, (P, C) -> (C,).

        The paper (Zhang et al., NAACL 2025, arXiv 2406.06579) calls alpha "the weight vector" and
        never defines it. This is the pooling of Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1), and
        what its code does once the code's own ReLU on the gradients is taken away.
        """
        return gradient.mean(0)

    def of_layer(self, seen: LayerView) -> Tensor:
        """Weigh the channels; see :meth:`Signal.of_layer`."""
        return (seen.features @ seen.gradient).relu()
