"""LLaVA-CAM as the paper's code computes it, for repeating its figures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlmflow.flow.signals.layer_view import LayerView
from vlmflow.flow.signals.llava_cam import LlavaCam

THRESHOLD = 0.5
"""Below this share of the maximum the paper's code sets its map to 0."""


@dataclass(frozen=True)
class LlavaCamCode(LlavaCam):
    """Computes what the paper's code computes.

    ``GradCAM.generate_cam`` in the authors' ``demo_smooth_grad_threshold.py``: a ReLU on the
    GRADIENTS before they are pooled, a mean over the channels instead of a sum, division by the
    maximum, and values below 0.5 set to 0; none of the four is in the paper. (The code also reads
    the gradient of other positions' logits, and a slice that is one image token off. That is not
    repeated here.) An empty map stays all 0 where the code divides by 0.
    """

    name = "llava_cam_code"
    summary = "the paper's code: gradients cut at zero, values below half of the largest dropped"
    label = "LLaVA-CAM, paper's code"
    source = "code of From Redundancy to Relevance (NAACL 2025)"

    def pool(self, gradient: Tensor) -> Tensor:
        """Keep everything: the code's ReLU is not linear; see :meth:`Signal.pool`."""
        return gradient

    def of_layer(self, seen: LayerView) -> Tensor:
        """Follow the code: values from 0 to 1; see :meth:`Signal.of_layer`."""
        weights = seen.gradient.relu().mean(0)
        heat = (seen.features * weights).mean(1).relu()
        peak = heat.max()
        heat = heat / peak.where(peak > 0, 1)
        return heat.where(heat >= THRESHOLD, 0)
