"""The truncation of a whole picture that costs the decoder as much as a smaller picture."""

from __future__ import annotations

from bisect import bisect_right

from vlmflow.truncation.flops import DecoderShape, layer_flops


def equal_keep(shape: DecoderShape, text: int, image: int, smaller: int, layer: int) -> int | None:
    """Return how many image tokens may stay from a layer on.

    The largest number with which the decoder's prefill takes no more operations than that of a
    prompt of ``smaller`` tokens in all layers; None where the layers before take more already.

    Parameters
    ----------
    shape : DecoderShape
        Sizes of the decoder.
    text, image : int
        Tokens of the whole prompt.
    smaller : int
        Tokens of the prompt with the smaller picture. Words between tiles go with the tiles, so
        that its text may be less, too.
    layer : int
        First layer without the tokens that are removed.
    """
    spent = layer * layer_flops(shape, text + image)
    left = shape.layers * layer_flops(shape, smaller) - spent
    rest = shape.layers - layer
    affordable = bisect_right(
        range(image + 1), left, key=lambda kept: rest * layer_flops(shape, text + kept)
    )
    return affordable - 1 if affordable else None
