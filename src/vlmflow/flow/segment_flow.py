"""How much flows from one segment of the sequence to another, whatever maps are wanted."""

from __future__ import annotations

from torch import Tensor


def attention_share(attention: Tensor, membership: Tensor) -> Tensor:
    """Share of each segment in the attention of each row.

    ``lambda_seg(l, i) = sum over j in seg of mean_h A[l, h, i, j]`` (Zhang et al., NAACL 2025,
    arXiv 2406.06579, eq. 6-9; the definition is FastV's, Chen et al., ECCV 2024). The shares of a
    row sum to 1: the position's attention to itself counts for its own segment.

    ``attention``, (R, N), holds the rows that predict answer tokens, averaged over the heads;
    ``membership``, (N, S), is 1 where a position belongs to a segment. Returns (R, S).
    """
    return attention @ membership.to(attention.dtype)


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
    destinations, membership : (R, B), (N, S)
        1 where a row belongs to a destination, and a position to a source.

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
