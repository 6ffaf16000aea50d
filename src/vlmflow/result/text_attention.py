"""What every word of question and answer attends to, layer by layer: rows of attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import IntArray
from vlmflow.lvlm.layout import TokenLayout

MOST_BYTES = 32 * 2**20
"""Of one result. Longer prompts keep the rows of fewer words, see :func:`kept_rows`."""


@dataclass(frozen=True, eq=False)
class TextAttention:
    """Attention of text positions to every position, averaged over the heads.

    A word of the question is read at its own position; an answer token at the position that
    predicts it, one before its own.

    Parameters
    ----------
    rows : (K,) int64
        Positions that attend, sorted: text after the first image token, and those that predict
        answer tokens. All there are, or as many as :func:`kept_rows` keeps.
    values : (L, K, N) float16
        ``mean_h A[l, h, rows, :]``; a row sums to 1 (less where a model has attention sinks), and
        is 0 in a layer without attention. Half precision: 0.05 % of each value, and no value below
        6e-8.
    """

    rows: IntArray
    values: npt.NDArray[np.float16]

    def checked(self, layout: TokenLayout, layers: int) -> TextAttention:
        """Return the same as read-only arrays; InputError if they do not fit a result."""
        rows = np.array(self.rows, dtype=np.int64)
        if (
            rows.ndim != 1
            or (np.diff(rows) <= 0).any()
            or not np.isin(rows, layout.text_rows).all()
        ):
            raise InputError(
                "text_attention.rows must be sorted positions of the question's words, or of those "
                "that predict the answer's tokens"
            )
        values = np.asarray(self.values)
        shape = (layers, len(rows), len(layout))
        if values.shape != shape or values.dtype != np.float16:
            raise InputError(
                f"text_attention.values must be {shape} float16, not {values.shape} {values.dtype}"
            )
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputError("text_attention.values must hold shares of attention, 0 or more")
        values = values.view()
        for array in (rows, values):
            array.setflags(write=False)
        return TextAttention(rows, values)

    def of(self, position: int) -> npt.NDArray[np.float32]:
        """Return what one position attends to in every layer: (L, N) float32.

        For the t-th answer token, counted from 0, it is ``layout.answer_rows[t]``.

        Raises
        ------
        InputError
            If its row was not kept.
        """
        place = np.flatnonzero(self.rows == position)
        if not place.size:
            raise InputError(
                f"position={position!r}, but attention was kept of positions "
                f"{', '.join(map(str, self.rows))}"
            )
        row: npt.NDArray[np.float32] = self.values[:, place[0]].astype(np.float32)
        return row


def kept_rows(layout: TokenLayout, layers: int, most_bytes: int = MOST_BYTES) -> IntArray:
    """Choose the text rows whose attention a result holds, within so many bytes: (K,), sorted.

    All of them where they fit. Else those next to the border of question and answer, in turns: the
    first tokens of the answer, and the last words before it.
    """
    return np.sort(by_nearness(layout)[: most_bytes // max(1, 2 * layers * len(layout))])


def by_nearness(layout: TokenLayout) -> IntArray:
    """Order all text rows by how near they are to the border of question and answer."""
    answer, user = layout.answer_rows, layout.user_rows[::-1]
    # in turns: the n-th of one, the n-th of the other
    turn = np.concatenate([2 * np.arange(len(answer)), 2 * np.arange(len(user)) + 1])
    return np.concatenate([answer, user])[np.argsort(turn, kind="stable")]
