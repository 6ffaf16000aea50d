from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import ImageGrid
from vlmflow.lvlm.layout import SEGMENTS, Segment, TokenLayout


def layout_of(codes: str) -> TokenLayout:
    """``s`` system, ``i`` image, ``u`` user, ``a`` answer, ``.`` padding."""
    by_code = {"s": 0, "i": 1, "u": 2, "a": 3, ".": -1}
    return TokenLayout(
        np.array([by_code[code] for code in codes]), tuple(codes), ((4, 2),), grids=()
    )


def grid_at(*positions: int) -> ImageGrid:
    x = np.arange(len(positions))
    boxes = np.stack([x * 2.0, x * 0.0, x * 2.0 + 2, x * 0.0 + 3], axis=-1)[None]
    return ImageGrid(0, np.array([positions]), boxes)


def test_segment_names_follow_the_codes():
    assert [Segment[name.upper()] for name in SEGMENTS] == [0, 1, 2, 3]


def test_rows_of_a_prompt_with_an_answer():
    layout = layout_of("ssiiuiuuaa")
    assert len(layout) == 10
    assert layout.image_positions.tolist() == [2, 3, 5]
    assert layout.answer_positions.tolist() == [8, 9]
    assert layout.answer_rows.tolist() == [7, 8]
    assert layout.user_rows.tolist() == [4, 6]
    assert layout.text_rows.tolist() == [4, 6, 7, 8]


def test_without_an_answer_every_user_position_is_a_user_row():
    layout = layout_of("siiuuu")
    assert layout.answer_rows.size == 0
    assert layout.user_rows.tolist() == layout.text_rows.tolist() == [3, 4, 5]


def test_an_answer_right_after_the_image_is_predicted_by_an_image_token():
    layout = layout_of("siia")
    assert layout.answer_rows.tolist() == layout.text_rows.tolist() == [2]
    assert layout.user_rows.size == 0


@given(st.text("siua", min_size=1, max_size=12), st.integers(0, 5), st.integers(0, 5))
def test_shifting_moves_every_position_by_the_padding(codes, before, after):
    layout = layout_of(codes)
    shifted = layout.shifted(before, before + len(layout) + after)
    assert len(shifted) == before + len(layout) + after
    for segment in (Segment.SYSTEM, Segment.IMAGE, Segment.USER, Segment.ANSWER):
        moved = layout.positions_of(segment) + before
        assert shifted.positions_of(segment).tolist() == moved.tolist()
    assert shifted.positions_of(Segment.PAD).size == before + after
    assert "".join(shifted.tokens) == codes


def test_shifting_moves_the_grids_and_keeps_their_boxes():
    layout = TokenLayout(np.array([0, 1, 1]), ("s", "i", "i"), ((4, 3),), (grid_at(1, 2),))
    (grid,) = layout.shifted(3, 6).grids
    assert grid.positions.tolist() == [[4, 5]]
    assert (grid.boxes == layout.grids[0].boxes).all()


def test_a_layout_must_fit_where_it_is_shifted_to():
    with pytest.raises(InputError, match="4 positions does not fit at offset 2 of 5"):
        layout_of("siiu").shifted(2, 5)


def test_a_layout_survives_json_and_arrays():
    layout = TokenLayout(
        np.array([0, 1, 1, 2, 3]), ("<s>", "<i>", "<i>", " a", "b"), ((4, 3),), (grid_at(1, 2),), ""
    )
    plain, arrays = layout.to_dict()
    again = TokenLayout.from_dict(json.loads(json.dumps(plain)), arrays)
    assert again.tokens == layout.tokens
    assert again.image_sizes == layout.image_sizes
    assert again.segments.tolist() == layout.segments.tolist()
    assert again.segments.dtype == np.int8
    assert again.grids[0].positions.tolist() == [[1, 2]]
    assert (again.grids[0].boxes == layout.grids[0].boxes).all()
    assert (again.grids[0].image, again.grids[0].kind) == (0, "full")


def test_the_reason_for_a_missing_map_is_kept():
    plain, arrays = TokenLayout(np.array([1]), ("i",), ((4, 3),), (), "no map: why").to_dict()
    assert TokenLayout.from_dict(plain, arrays).grids_missing == "no map: why"


def test_a_layout_cannot_be_changed_and_does_not_hold_the_callers_array():
    segments = np.array([0, 1, 2])
    layout = TokenLayout(segments, ("s", "i", "u"), ((4, 3),))
    segments[0] = 3
    assert layout.segments[0] == Segment.SYSTEM
    with pytest.raises(ValueError, match="read-only"):
        layout.segments[0] = 2


def test_grids_and_layouts_refuse_what_does_not_fit_together():
    with pytest.raises(InputError, match="one token text per position"):
        TokenLayout(np.array([0, 1]), ("s",), ())
    with pytest.raises(InputError, match="positions"):
        ImageGrid(0, np.array([[1, 2]]), np.zeros((1, 3, 4)))
    with pytest.raises(InputError, match="share their edges"):
        ImageGrid(0, np.array([[1], [2]]), np.array([[[0, 0, 2, 2]], [[1, 2, 3, 4]]]))
