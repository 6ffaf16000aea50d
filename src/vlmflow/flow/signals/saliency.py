"""Saliency flow: attention that the target depends on."""

from __future__ import annotations

from torch import Tensor


def saliency(signed: Tensor) -> Tensor:
    """``I_l = abs( sum_h A_{l,h} * d target / d A_{l,h} )``.

    Wang et al., "Label Words are Anchors", EMNLP 2023, section 2.1 (the transpose in its first
    arXiv version is a typo): the sum over the heads is taken before the absolute value.

    Parameters
    ----------
    signed : (R, N)
        ``sum_h A_h * dA_h`` of the rows, see :func:`vlmflow.flow.attention_rows.signed_saliency`.

    Returns
    -------
    (R, N)
    """
    return signed.abs()


def segment_saliency(
    rows_saliency: Tensor, rows: Tensor, destinations: Tensor, membership: Tensor
) -> tuple[Tensor, Tensor]:
    """``S_{a->b}``: mean and sum of ``I_l(i, j)`` over pairs with i in b, j in a, j < i.

    The LVLM analogue of ``S_wp`` and ``S_pq`` of Wang et al. (EMNLP 2023, eq. 2-3). The diagonal is
    left out, as there. Where there are no pairs both are 0.

    Parameters
    ----------
    rows_saliency : (R, N)
        ``I_l`` of the rows.
    rows : (R,) int64
        Position of each row.
    destinations : (R, B)
        1 where a row belongs to a destination.
    membership : (N, S)
        1 where a position belongs to a source.

    Returns
    -------
    mean, sum : (B, S) each
    """
    columns = rows.new_ones(rows_saliency.shape[1]).cumsum(0) - 1
    earlier = (columns < rows[:, None]).to(rows_saliency.dtype)
    into = destinations.to(rows_saliency.dtype).T
    source = membership.to(rows_saliency.dtype)
    total = into @ ((rows_saliency * earlier) @ source)
    pairs = into @ (earlier @ source)
    return total / pairs.clamp_min(1), total


def saliency_map(rows_saliency: Tensor, image_positions: Tensor) -> Tensor:
    """Sum what each image token sends to all text rows: over rows i, ``I_l(i, j)``.

    Parameters
    ----------
    rows_saliency : (R, N)
        ``I_l`` of the text rows.
    image_positions : (P,) int64
        Positions of the image tokens.

    Returns
    -------
    (P,)
    """
    return rows_saliency[:, image_positions].sum(0)
