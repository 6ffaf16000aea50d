"""How concentrated a map is: three figures between 0 and 1 on a map over the image tokens.

All three read a map, (P,), as *mass* spread over tokens: values divided by their sum, where values
that are not positive carry none. A map without any mass (an empty one, or one of no tokens) has no
shape to measure; the answer is then ``None``, never a number that looks like a finding. A map that
has not exactly one axis, or holds NaN or infinity, raises ``InputError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError

FloatArray = npt.NDArray[np.float64]


def _masses(values: npt.ArrayLike) -> FloatArray | None:
    """Shares that sum to 1, or None where the map has no mass."""
    # float64: the sum of large float32 values must not overflow
    positive = np.asarray(values, dtype=np.float64)
    if positive.ndim != 1:
        raise InputError(f"a map over the image tokens has one axis, not shape {positive.shape}")
    if not np.isfinite(positive).all():
        raise InputError("a map over the image tokens must hold finite values only")
    positive = np.maximum(positive, 0.0)
    peak = positive.max(initial=0.0)
    if peak == 0.0:
        return None
    # dividing by the peak first keeps tiny (denormal) and huge maps exact
    scaled = positive / peak
    shares: FloatArray = scaled / scaled.sum()
    return shares


def entropy(values: npt.ArrayLike) -> float | None:
    """Normalised entropy of a map: 0 if one token holds everything, 1 if all hold the same.

    ``H = -sum_p m_p log m_p / log P`` with the masses ``m`` (Shannon 1948), divided by the entropy
    of the uniform map so that models with different numbers of image tokens compare.

    A map of a single token with mass gives 0.
    """
    masses = _masses(values)
    if masses is None:
        return None
    if masses.size == 1:
        return 0.0
    held = masses[masses > 0]
    # rounding may step outside by one unit in the last place
    return float(np.clip(-(held * np.log(held)).sum() / math.log(masses.size), 0.0, 1.0))


def top_mass(values: npt.ArrayLike, share: float = 0.1) -> float | None:
    """Mass held by the strongest tokens: by default the top 10 % *by count*.

    The number of tokens counted is ``share * P`` rounded UP, and at least one: 10 % of 144 tokens
    are 15 tokens, 10 % of 576 are 58. A uniform map therefore gives that number over ``P``.

    Parameters
    ----------
    values : (P,) array-like
        The map.
    share : float
        Fraction of the tokens to count, above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(f"share={share}, but a share of the tokens lies above 0 and at most at 1")
    masses = _masses(values)
    if masses is None:
        return None
    # 0.1 * 30 is 3.0000000000000004: without rounding first it would count four tokens
    count = max(1, math.ceil(round(share * masses.size, 9)))
    return float(min(np.sort(masses)[-count:].sum(), 1.0))


def mass_inside(values: npt.ArrayLike, boxes: npt.ArrayLike, box: Sequence[float]) -> float | None:
    """Mass of a map that falls inside an object's box, area-weighted.

    A token's mass is taken as spread evenly over its own box, so a token half covered by the
    object gives half of its mass. What a token's box holds outside the picture (where the image
    processor padded it) counts as outside the object.

    Parameters
    ----------
    values : (P,) array-like
        The map.
    boxes : (P, 4) array-like
        ``x0, y0, x1, y1`` of every token in pixels; NaN for tokens that have no place in this
        picture (another picture's, a separator's): their mass counts as outside.
    box : sequence of 4 floats
        ``x0, y0, x1, y1`` of the object in the same pixels.

    Raises
    ------
    InputError
        If ``box`` is not four finite numbers around an area, or ``boxes`` does not fit the map.
    """
    try:
        edges = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError):
        edges = np.empty(0)
    well_formed = edges.shape == (4,) and bool(np.isfinite(edges).all())
    if not well_formed or edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise InputError(
            f"box={box!r}, but a box is x0, y0, x1, y1 in pixels with x0 < x1, y0 < y1"
        )
    masses = _masses(values)
    tokens = np.asarray(boxes, dtype=np.float64)
    count = np.asarray(values).size
    if tokens.shape != (count, 4):
        raise InputError(f"a map of {count} tokens needs boxes ({count}, 4), not {tokens.shape}")
    if masses is None:
        return None
    width = np.minimum(tokens[:, 2], edges[2]) - np.maximum(tokens[:, 0], edges[0])
    height = np.minimum(tokens[:, 3], edges[3]) - np.maximum(tokens[:, 1], edges[1])
    area = (tokens[:, 2] - tokens[:, 0]) * (tokens[:, 3] - tokens[:, 1])
    overlap = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    covered = np.divide(overlap, area, out=np.zeros(count), where=area > 0)
    return float(np.clip((masses * covered).sum(), 0.0, 1.0))
