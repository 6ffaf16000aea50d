"""Boxes against real image processors: paint markers into pictures and see which patches move."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    PixtralImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.image_transforms import (
    get_resize_output_image_size,
    get_size_with_aspect_ratio,
)
from transformers.image_utils import get_image_size_for_max_height_width

from vlmflow.errors import InputError
from vlmflow.lvlm.families import FAMILIES, PromptPictures, family_of
from vlmflow.lvlm.geometry import MapUnavailableError, paint, preimage, read_off, resized_size
from vlmflow.lvlm.grids import ImageGrid, SharedGrid
from vlmflow.lvlm.layout import TokenLayout

PATCH = 14
SIDE = 4 * PATCH
SQUARE = {"height": SIDE, "width": SIDE}

PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    "clip, odd margins": CLIPImageProcessorPil(size={"shortest_edge": SIDE + 5}, crop_size=SQUARE),
    "clip, padded crop": CLIPImageProcessorPil(size={"shortest_edge": SIDE - 15}, crop_size=SQUARE),
    "clip, wide crop": CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": 3 * PATCH, "width": 5 * PATCH}
    ),
    "clip, crop no multiple of the patch": CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE + 5, "width": SIDE + 9}
    ),
    "clip, bilinear": CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, resample=Image.Resampling.BILINEAR
    ),
    "clip, no crop": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, do_center_crop=False),
    "clip, no resize": CLIPImageProcessorPil(do_resize=False, crop_size=SQUARE),
    "clip, limited": CLIPImageProcessorPil(
        size={"shortest_edge": SIDE, "longest_edge": 50 * SIDE}, do_center_crop=False
    ),
    "clip, to fit": CLIPImageProcessorPil(
        size={"max_height": 8 * SIDE, "max_width": 4 * SIDE}, crop_size=SQUARE
    ),
    "siglip": SiglipImageProcessorPil(size={"height": 3 * PATCH, "width": SIDE}),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    "llava, padded to a square": LlavaImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, do_pad=True
    ),
}
SIZES = [(80, 60), (60, 80), (56, 56), (57, 61), (641, 479), (900, 45), (45, 900)]
EXTREME = [(3, 40), (40, 3), (2, 2), (4000, 37), (37, 4000)]

each_processor = pytest.mark.parametrize("name", PROCESSORS)


def grid_of(name: str, size: tuple[int, int]) -> ImageGrid:
    """The grid the LLaVA family makes of a picture of this (width, height)."""
    pixels = pixel_values(name, np.zeros((size[1], size[0], 3), np.uint8))
    count = (pixels.shape[-2] // PATCH) * (pixels.shape[-1] // PATCH)
    (grid,) = family_of("llava").grids(
        PromptPictures(
            positions=np.arange(count),
            image_sizes=(size,),
            inputs={"pixel_values": pixels[None]},
            config=SimpleNamespace(vision_config=SimpleNamespace(patch_size=PATCH)),
            processor=SimpleNamespace(image_processor=PROCESSORS[name]),
        )
    )
    return grid


def pixel_values(name: str, picture: np.ndarray) -> np.ndarray:
    """``(3, height, width)`` in brightness levels, as the processor makes it."""
    processor = PROCESSORS[name]
    values = processor(Image.fromarray(picture), do_normalize=False, return_tensors="np")
    return values["pixel_values"][0] * 255


def moved_by(name: str, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """``(height, width)``: change of the tower's pixels when ``x0, y0, x1, y1`` turns white."""
    x0, y0, x1, y1 = window
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    before = pixel_values(name, picture)
    picture[y0:y1, x0:x1] = 255
    return np.abs(pixel_values(name, picture) - before).max(axis=0)


def by_patch(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """``(rows, cols)``: mean over each patch."""
    rows, cols = shape
    return (
        pixels[: rows * PATCH, : cols * PATCH].reshape(rows, PATCH, cols, PATCH).mean(axis=(1, 3))
    )


def reach(name: str, scale: float) -> float:
    """How far, in picture pixels, a resized pixel looks to either side of its centre."""
    processor = PROCESSORS[name]
    if not processor.do_resize:
        return 0.5
    radius = {Image.Resampling.BILINEAR: 1.0, Image.Resampling.BICUBIC: 2.0}[processor.resample]
    return radius * max(scale, 1.0) + 0.5


def may_move(name: str, edges: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Which intervals hold the centre of a resized pixel that looks at ``start..stop``."""
    scale = (edges[0, 1] - edges[0, 0]) / PATCH
    far = reach(name, scale)
    first, last = edges[:, 0] + scale / 2, edges[:, 1] - scale / 2
    return (first <= stop + far) & (last >= start - far)


def inside(edges: np.ndarray, limit: int) -> tuple[int, int] | None:
    """Whole pixels within an interval, or the one at its centre; None outside the picture."""
    start, stop = int(np.ceil(edges[0] - 1e-9)), int(np.floor(edges[1] + 1e-9))
    if start >= stop:
        start = int(np.floor(edges.mean()))
        stop = start + 1
    start, stop = max(start, 0), min(stop, limit)
    return (start, stop) if start < stop else None


def violations(name: str, size: tuple[int, int], grid: ImageGrid) -> list[str]:
    """Paint the inside of every box in turn; say where the patches disagree with the boxes."""
    wrong = []
    rows, cols = grid.shape
    # A few rows and columns are enough: the corners, and those next to them.
    for row in sorted({0, 1 % rows, rows // 2, rows - 1}):
        for col in sorted({0, 1 % cols, cols // 2, cols - 1}):
            x = inside(grid.x_edges[col], size[0])
            y = inside(grid.y_edges[row], size[1])
            if x is None or y is None:
                continue
            moved = by_patch(moved_by(name, size, (x[0], y[0], x[1], y[1])), grid.shape)
            if not moved[row, col] > 0:
                wrong.append(f"box {row},{col} does not move its own patch")
            allowed = np.outer(may_move(name, grid.y_edges, *y), may_move(name, grid.x_edges, *x))
            if (moved[~allowed] > 0).any():
                wrong.append(f"box {row},{col} moves patches that do not touch it")
    return wrong


@each_processor
@pytest.mark.parametrize("size", SIZES + EXTREME, ids=lambda size: "x".join(map(str, size)))
def test_painting_a_box_moves_its_token_and_no_other(name, size):
    assert violations(name, size, grid_of(name, size)) == []


@settings(max_examples=80)
@given(st.sampled_from(sorted(PROCESSORS)), st.integers(2, 300), st.integers(2, 300))
def test_painting_a_box_moves_its_token_at_any_size(name, width, height):
    assert violations(name, (width, height), grid_of(name, (width, height))) == []


@each_processor
def test_the_markers_notice_boxes_that_are_one_patch_off(name):
    size = (480, 360)
    grid = grid_of(name, size)
    for axis in (0, 1):
        step = np.zeros(4)
        step[axis::2] = grid.boxes[0, 0, axis + 2] - grid.boxes[0, 0, axis]
        shifted = ImageGrid(0, grid.positions, grid.boxes + step)
        assert violations(name, size, shifted)


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(PROCESSORS)),
    st.tuples(st.integers(20, 400), st.integers(20, 400)),
    st.floats(0.2, 0.8),
    st.booleans(),
)
def test_an_edge_in_the_picture_lands_where_the_boxes_say(name, size, share, across):
    """A resized edge passes half its height exactly at its own place, at any scale.

    This is finer than a patch: a box that is off by half a pixel of the tower fails.
    """
    side = size[0] if across else size[1]
    cut = round(share * side)
    grid = grid_of(name, size)
    edges = grid.x_edges if across else grid.y_edges
    scale = (edges[0, 1] - edges[0, 0]) / PATCH
    # Nearer to the border the filter is cut off and its half height is elsewhere.
    assume(min(cut, side - cut) > 2 * reach(name, scale))
    window = (cut, 0, size[0], size[1]) if across else (0, cut, size[0], size[1])
    moved = moved_by(name, size, window)
    profile = moved.max(axis=0 if across else 1)
    centres = edges[0, 0] + (np.arange(profile.size) + 0.5) * scale
    # Within a tenth of a pixel of the edge rounding to 8 bits may decide.
    clear = np.abs(centres - cut) > 0.1 * max(scale, 1.0)
    seen = clear & (centres > 0) & (centres < side)
    assert ((profile[seen] > 127.5) == (centres[seen] > cut)).all()


@each_processor
@pytest.mark.parametrize("size", [*SIZES, (3, 40), (4000, 37)])
def test_boxes_tile_and_what_they_leave_out_moves_nothing(name, size):
    grid = grid_of(name, size)
    for edges in (grid.x_edges, grid.y_edges):
        assert (edges[1:, 0] == edges[:-1, 1]).all()
        widths = edges[:, 1] - edges[:, 0]
        np.testing.assert_allclose(widths, widths[0], rtol=1e-9)
    left, right = grid.x_edges[0, 0], grid.x_edges[-1, 1]
    top, bottom = grid.y_edges[0, 0], grid.y_edges[-1, 1]
    far_x = reach(name, (right - left) / grid.shape[1] / PATCH)
    far_y = reach(name, (bottom - top) / grid.shape[0] / PATCH)
    rows, cols = grid.shape
    for window in (
        (0, 0, max(0, int(left - far_x)), size[1]),
        (min(size[0], int(np.ceil(right + far_x))), 0, size[0], size[1]),
        (0, 0, size[0], max(0, int(top - far_y))),
        (0, min(size[1], int(np.ceil(bottom + far_y))), size[0], size[1]),
    ):
        moved = moved_by(name, size, window)[: rows * PATCH, : cols * PATCH]
        assert moved.max() == 0


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 56},
        {"shortest_edge": 56, "longest_edge": 80},
        {"max_height": 70, "max_width": 45},
        {"height": 30, "width": 40},
    ],
    ids=str,
)
@given(width=st.integers(2, 2000), height=st.integers(2, 2000))
def test_sizes_are_rounded_as_transformers_does(size, width, height):
    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    if "longest_edge" in size:
        new = get_size_with_aspect_ratio((height, width), *size.values())
    elif "shortest_edge" in size:
        new = get_resize_output_image_size(
            picture, 56, default_to_square=False, input_data_format="channels_first"
        )
    elif "max_height" in size:
        new = get_image_size_for_max_height_width((height, width), *size.values())
    else:
        new = (30, 40)
    assert resized_size(size, width, height) == (new[1], new[0])


def test_llava_1_5_cuts_the_sides_of_a_wide_picture():
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    boxes = preimage(processor, 1000, 500).boxes(24, 24, 14, 14)
    np.testing.assert_allclose(boxes[0, 0, :2], [250, 0])
    np.testing.assert_allclose(boxes[-1, -1, 2:], [750, 500])


def test_padding_of_an_odd_margin_depends_on_the_back_end():
    """PIL's crop pads the larger half in front, torchvision's the smaller."""
    pil = CLIPImageProcessorPil(do_resize=False, crop_size=SQUARE)

    class Torchvision(CLIPImageProcessorPil):
        backend = "torchvision"

    other = Torchvision(do_resize=False, crop_size=SQUARE)
    assert preimage(pil, SIDE - 3, SIDE).x_offset == -2
    assert preimage(other, SIDE - 3, SIDE).x_offset == -1


def test_a_processor_with_steps_of_its_own_has_no_map():
    with pytest.raises(MapUnavailableError, match="PixtralImageProcessor"):
        preimage(PixtralImageProcessorPil(), 30, 20)


def test_every_model_type_has_one_family():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))


def layout_with(*grids: ImageGrid, size: tuple[int, int]) -> TokenLayout:
    count = 1 + max(int(grid.positions.max()) for grid in grids)
    return TokenLayout(np.ones(count), ("<image>",) * count, (size,), tuple(grids))


@each_processor
@pytest.mark.parametrize("size", [(80, 60), (57, 61), (3, 40), (400, 37)])
def test_a_painted_map_keeps_values_in_their_boxes(name, size):
    grid = grid_of(name, size)
    layout = layout_with(grid, size=size)
    values = np.random.default_rng(0).random(grid.positions.size)
    painted = paint(layout.grids, values, layout)
    assert painted.shape == (size[1], size[0])
    assert painted.dtype == np.float32
    for (row, col), position in np.ndenumerate(grid.positions):
        x0, y0, x1, y1 = grid.boxes[row, col]
        xs = slice(max(0, int(np.ceil(x0))), max(0, int(np.floor(x1))))
        ys = slice(max(0, int(np.ceil(y0))), max(0, int(np.floor(y1))))
        np.testing.assert_allclose(painted[ys, xs], values[position], rtol=1e-5)
    x = np.arange(size[0]) + 0.5
    y = np.arange(size[1]) + 0.5
    seen_x = (x > grid.x_edges[0, 0] - 0.5 + 1e-6) & (x < grid.x_edges[-1, 1] + 0.5 - 1e-6)
    seen_y = (y > grid.y_edges[0, 0] - 0.5 + 1e-6) & (y < grid.y_edges[-1, 1] + 0.5 - 1e-6)
    assert (np.isfinite(painted) == np.outer(seen_y, seen_x)).all()


def test_overlapping_boxes_give_their_mean_and_a_copy_gets_the_same_map():
    whole = ImageGrid(0, np.array([[0]]), np.array([[[0.0, 0, 4, 2]]]))
    left = ImageGrid(0, np.array([[1]]), np.array([[[0.0, 0, 2, 2]]]), kind="tile")
    layout = layout_with(whole, left, size=(4, 2))
    painted = paint(layout.grids, [1.0, 3.0], layout)
    assert painted.tolist() == [[2, 2, 1, 1]] * 2
    copy = paint(layout.grids, [1.0, 3.0], layout, size=(8, 4))
    assert copy.tolist() == [[2, 2, 2, 2, 1, 1, 1, 1]] * 4


def test_tokens_outside_the_grid_are_passed_over():
    grid = ImageGrid(0, np.array([[1, 2]]), np.array([[[0.0, 0, 2, 2], [2, 0, 4, 2]]]))
    layout = layout_with(grid, size=(4, 2))
    assert paint(layout.grids, [9.0, 1.0, 2.0], layout)[0].tolist() == [1, 1, 2, 2]


def test_what_cannot_be_painted_is_said():
    grid = ImageGrid(0, np.array([[0]]), np.array([[[0.0, 0, 4, 2]]]))
    layout = layout_with(grid, size=(4, 2))
    with pytest.raises(InputError, match=r"image=1, but the prompt has 1 picture"):
        paint(layout.grids, [1.0], layout, 1)
    with pytest.raises(InputError, match=r"one value per image token \(1\)"):
        paint(layout.grids, [1.0, 2.0], layout)
    bare = TokenLayout(np.ones(1), ("i",), ((4, 2),), (), "no map over pixels: why")
    with pytest.raises(InputError, match="no map over pixels: why"):
        paint(bare.grids, [1.0], bare)


def test_what_is_read_off_pixels_is_the_mean_under_each_token():
    """Against a fine grid of points: fractions of pixels, shared patches, tokens of no place."""
    x, y = np.meshgrid([0.0, 3.5], [0.5, 2.5])
    boxes = np.stack([x, y, x + 3.5, y + 2], -1)
    looks = np.array([[[0.5, 0.5], [0, 0]], [[0, 0], [0.25, 0.75]]])
    grids = (
        ImageGrid(0, np.arange(4).reshape(2, 2), boxes),
        SharedGrid(1, np.array([5, 6]), boxes, looks=looks, how="made up"),
    )
    layout = TokenLayout(np.ones(7), ("i",) * 7, ((7, 5), (7, 5)), grids)
    pixels = np.random.default_rng(0).random((2, 5, 7))
    read = read_off(layout.grids, pixels, layout)

    def mean(image, box):
        x0, y0, x1, y1 = box
        across = np.floor(np.linspace(x0, x1, 701)[:-1] + 1e-6).astype(int)
        down = np.floor(np.linspace(y0, y1, 401)[:-1] + 1e-6).astype(int)
        return pixels[image][np.ix_(down, across)].mean()

    means = [[mean(image, box) for box in boxes.reshape(-1, 4)] for image in (0, 1)]
    np.testing.assert_allclose(read[:4], means[0], rtol=1e-6)
    assert np.isnan(read[4])
    np.testing.assert_allclose(read[5:], looks.reshape(2, 4) @ means[1], rtol=1e-6)
