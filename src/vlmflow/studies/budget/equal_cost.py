"""The truncation of a whole picture that costs the decoder as much as a smaller picture."""

from __future__ import annotations

from bisect import bisect_right

from vlmflow.truncation.flops import DecoderShape, layer_flops


def equal_keep(shape: DecoderShape, text: int, image: int, budget: int, layer: int) -> int | None:
    """Return how many image tokens may stay from a layer on.

    The largest number with which the decoder's prefill takes no more operations than that of
    ``budget`` image tokens in all layers; None where the layers before take more already.

    Parameters
    ----------
    shape : DecoderShape
        Sizes of the decoder.
    text, image : int
        Tokens of the whole prompt.
    budget : int
        Image tokens of the smaller picture.
    layer : int
        First layer without the tokens that are removed.
    """
    spent = layer * layer_flops(shape, text + image)
    left = shape.layers * layer_flops(shape, text + budget) - spent
    rest = shape.layers - layer
    affordable = bisect_right(
        range(image + 1), left, key=lambda kept: rest * layer_flops(shape, text + kept)
    )
    return affordable - 1 if affordable else None
