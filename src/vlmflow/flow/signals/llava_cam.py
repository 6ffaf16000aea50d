"""LLaVA-CAM: Grad-CAM on the features of a decoder layer at the image positions."""

from __future__ import annotations

from torch import Tensor

CODE_THRESHOLD = 0.5
"""Below this share of the maximum the paper's code sets its map to 0."""


def channel_weights(gradients: Tensor) -> Tensor:
    """``alpha_k``: mean over the image positions of ``G_k = d target / d A_k``.

    The paper (Zhang et al., NAACL 2025, arXiv 2406.06579) calls alpha "the weight vector" and never
    defines it. This is the pooling of Grad-CAM (Selvaraju et al., ICCV 2017, eq. 1), and what its
    code does once the code's own ReLU on the gradients is taken away. It is linear in the target.

    Parameters
    ----------
    gradients : (P, C)
        Gradient of the target with respect to the features at the image positions.

    Returns
    -------
    (C,)
    """
    return gradients.mean(0)


def heat_map(features: Tensor, weights: Tensor) -> Tensor:
    """``Heat = ReLU( sum_k alpha_k A_k )`` (paper eq. 3), magnitudes kept.

    Parameters
    ----------
    features : (P, C)
        The features at the image positions.
    weights : (C,)
        ``alpha``.

    Returns
    -------
    (P,)
    """
    return (features @ weights).relu()


def llava_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """LLaVA-CAM (paper eq. 1-3): :func:`heat_map` with :func:`channel_weights`.

    Nothing is normalised, so layers can be compared. The smoothed map (eq. 4-5) is the mean of this
    one over noisy pictures, see :mod:`vlmflow.explanation.smoothing`.

    Parameters
    ----------
    features, gradients : (P, C)
        The features at the image positions and their gradient.

    Returns
    -------
    (P,)
    """
    return heat_map(features, channel_weights(gradients))


def llava_cam_code(features: Tensor, gradients: Tensor) -> Tensor:
    """Compute what the paper's code computes, for repeating its figures.

    ``GradCAM.generate_cam`` in the authors' ``demo_smooth_grad_threshold.py``: a ReLU on the
    GRADIENTS before they are pooled, a mean over the channels instead of a sum, division by the
    maximum, and values below 0.5 set to 0; none of the four is in the paper. (The code also reads
    the gradient of other positions' logits, and a slice that is one image token off. That is not
    repeated here.) An empty map stays all 0 where the code divides by 0.

    Parameters
    ----------
    features, gradients : (P, C)
        The features at the image positions and their gradient.

    Returns
    -------
    (P,)
        Between 0 and 1.
    """
    weights = gradients.relu().mean(0)
    heat = (features * weights).mean(1).relu()
    peak = heat.max()
    heat = heat / peak.where(peak > 0, 1)
    return heat.where(heat >= CODE_THRESHOLD, 0)
