"""Published methods as compositions of schedule, ranking, remainder and positions.

Papers state layers for models of 32 decoder layers. ``scaled`` puts them at the same depth of a
model of ``L`` layers: ``round(layer / 32 * L)``. What a preset leaves out of its method is said
in its docstring.
"""

from __future__ import annotations

from collections.abc import Callable

from vlmflow.errors import InputError
from vlmflow.truncation.truncation import Truncation

Preset = Callable[[int], Truncation]
"""Makes the policy for a model of L decoder layers."""

PAPER_LAYERS = 32


def scaled(layer: int, layers: int) -> int:
    """Put a layer of a 32-layer model at the same depth of a model of ``layers`` layers."""
    return min(layers - 1, max(1, round(layer / PAPER_LAYERS * layers)))


def cliff(layers: int) -> Truncation:
    """From Redundancy to Relevance (Zhang et al. 2025): no image token from the cliff layer on.

    K = 22, the paper's code's constant, found for POPE on LLaVA-1.5-7B; the paper names 12 for
    ScienceQA, 18 for TextVQA and about 30 for captions. Measure your own before you rely on it.
    """
    return Truncation(layer=scaled(22, layers), keep=0)


def fastv(layers: int) -> Truncation:
    """FastV (Chen et al. 2024): half the tokens at layer 2, by the last token's attention.

    The ranking is that of its code; its text describes ``mean_attention``.
    """
    return Truncation(layer=scaled(2, layers), keep=0.5, rank_by="last_attention")


def vtw(layers: int) -> Truncation:
    """Visual tokens withdrawal (Lin et al. 2025): none from the middle on.

    K = 16 of 32 is its code's default; the method searches K by a KL threshold.
    """
    return Truncation(layer=scaled(16, layers), keep=0)


def pyramiddrop(layers: int) -> Truncation:
    """PyramidDrop (Xing et al. 2025): half of what is left after each quarter of the layers.

    Positions are re-packed, as in its code.
    """
    at = tuple(scaled(layer, layers) for layer in (8, 16, 24))
    return Truncation(at, (0.5, 0.25, 0.125), rank_by="last_attention", positions="repack")


def dart(layers: int) -> Truncation:
    """DART (Wen et al. 2025): 88.9 % dropped at layer 2, those most like a few pivots.

    Pivots are image tokens only; DART takes some from the text too.
    """
    return Truncation(layer=scaled(2, layers), keep=1 / 9, rank_by="duplication")


def divprune(_layers: int) -> Truncation:
    """DivPrune (Alvar et al. 2025): the 9.8 % most diverse patches, before the decoder."""
    return Truncation(layer=0, keep=0.098, rank_by="diversity")


def sparsevlm(layers: int) -> Truncation:
    """SparseVLM (Zhang et al. 2025): 300, 200, 110 of 576 from layers 2, 6, 15; the rest recycled.

    All text after the picture counts, and removed tokens are merged into the most similar kept one;
    SparseVLM selects text tokens and clusters what it recycles. Positions are kept.
    """
    at = tuple(scaled(layer, layers) for layer in (2, 6, 15))
    keep = tuple(count / 576 for count in (300, 200, 110))
    return Truncation(at, keep, rank_by="text_attention", remainder="merge")


def simignore(_layers: int) -> Truncation:
    """Simignore (Zhang et al. 2025): 452 of 576 tokens, those most like the text.

    The likeness is to the question's tokens, not to the options of a multiple-choice question. Its
    scripts switch FastV on as well; this does not.
    """
    return Truncation(layer=0, keep=452 / 576, rank_by="question_similarity")


def random(layers: int) -> Truncation:
    """Control: FastV's schedule with tokens drawn at random."""
    return Truncation(layer=scaled(2, layers), keep=0.5, rank_by="random")


def uniform(layers: int) -> Truncation:
    """Control: FastV's schedule with tokens spread evenly over the picture."""
    return Truncation(layer=scaled(2, layers), keep=0.5, rank_by="uniform")


def no_image(_layers: int) -> Truncation:
    """Control: the decoder never sees an image token."""
    return Truncation(layer=0, keep=0)


_METHODS = (cliff, fastv, vtw, pyramiddrop, dart, divprune, sparsevlm, simignore)
_CONTROLS = (random, uniform, no_image)
PRESETS: dict[str, Preset] = {
    make.__name__.replace("_", "-"): make for make in (*_METHODS, *_CONTROLS)
}


def check_preset(name: str) -> None:
    """Refuse a name that no preset has."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")


def preset(name: str, layers: int) -> Truncation:
    """Make a published method's policy for a model of ``layers`` decoder layers.

    Raises
    ------
    InputError
        For an unknown name, or a model with too few layers for the schedule.
    """
    check_preset(name)
    try:
        return PRESETS[name](layers)
    except InputError as error:
        raise InputError(
            f"the schedule of preset {name!r} does not fit a model of {layers} layers: {error}"
        ) from error
