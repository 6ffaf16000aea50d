"""Attention flow: where the position that predicts an answer token looks."""

from __future__ import annotations

from torch import Tensor


def attention_share(attention: Tensor, membership: Tensor) -> Tensor:
    """Share of each segment in the attention of each row.

    ``lambda_seg(l, i) = sum over j in seg of mean_h A[l, h, i, j]`` (Zhang et al., NAACL 2025,
    arXiv 2406.06579, eq. 6-9; the definition is FastV's, Chen et al., ECCV 2024). The shares of a
    row sum to 1: the position's attention to itself counts for its own segment.

    Parameters
    ----------
    attention : (R, N)
        Mean over the heads of the rows of the positions that predict the answer tokens.
    membership : (N, S)
        1 where a position belongs to a segment.

    Returns
    -------
    (R, S)
    """
    return attention @ membership.to(attention.dtype)


def attention_map(attention: Tensor, image_positions: Tensor) -> Tensor:
    """Attention of each row to every image token, mean over the heads.

    Parameters
    ----------
    attention : (R, N)
        Mean over the heads.
    image_positions : (P,) int64
        Positions of the image tokens.

    Returns
    -------
    (R, P)
    """
    return attention[:, image_positions]
