"""What was measured on one answer, in words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmflow.lvlm.layout import SEGMENTS, TokenLayout


def image_share_sentence(
    attention_share: npt.NDArray[np.float32], layout: TokenLayout, subject: str = "the answer"
) -> str:
    """Say how much of its attention what is explained gives to the image, first and last.

    Parameters
    ----------
    attention_share : (L, G, S) float32
        As in :class:`vlmflow.result.information_flow.InformationFlow`.
    layout : TokenLayout
        Says whether there are pictures, frames or both.
    subject : str
        What is explained, as :attr:`InformationFlow.subject` names it.
    """
    share = attention_share[:, 0]
    attending = np.flatnonzero(share.any(axis=1))
    if attending.size == 0:
        return "No layer of this model has attention that could be measured."
    first, last = int(attending[0]), int(attending[-1])
    image = share[:, SEGMENTS.index("image")]
    source = "image" if len(layout.image_sizes) == 1 else "images"
    if layout.frames:
        source = "frames" if all(layout.frames) else "images and frames"
    start, end = percent(image[first]), percent(image[last])
    if subject == "the answer":
        opening = f"At layer {first} the answer draws {start} of its attention from the {source}"
        return opening + f", at layer {last} it draws {end}" * (last > first) + "."
    opening = f"{start} of the attention that predicts {subject} goes to the {source} at layer"
    return f"{opening} {first}" + f", {end} at layer {last}" * (last > first) + "."


def shown_things(layout: TokenLayout) -> str:
    """Name what a question shows: ``"picture"``, ``"pictures"``, ``"video"``, ..."""
    videos = {group.video for group in layout.frames if group is not None}
    pictures = len(layout.image_sizes) - sum(group is not None for group in layout.frames)
    names = [("picture", pictures), ("video", len(videos))]
    return " and ".join(name + "s" * (count > 1) for name, count in names if count) or "picture"


def percent(share: float) -> str:
    """Write a share as text: whole per cent, one decimal below 10 %."""
    value = 100 * float(share)
    if value == 0:
        return "0\u00a0%"
    if value < 0.05:
        return "less than 0.1\u00a0%"
    # 9.96 rounds to 10.0, which reads better as 10
    return f"{value:.1f}\u00a0%" if value < 9.95 else f"{value:.0f}\u00a0%"
