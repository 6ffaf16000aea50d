"""From patches back to pixels: the exact inverse of resize, padding and centre crop.

An image processor turns picture coordinates into the vision tower's by one straight line per axis,
so the pixels of a patch are a box. Coordinates are those of pixel EDGES: a picture of width
``w`` spans 0 to ``w``, pixel ``j`` spans ``j`` to ``j + 1``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmflow.errors import InputError
from vlmflow.lvlm.grids import FloatArray, Grid, SharedGrid
from vlmflow.lvlm.layout import TokenLayout

AnyFloats = npt.NDArray[np.floating[Any]]

SEEN = 1e-6
"""Share of a pixel that boxes must cover before it counts as seen (keeps rounding errors out)."""


_SHARED_STEPS = ("transformers.image_processing_backends", "transformers.video_processing_utils")
"""Where the steps live that most processors share."""


class MapUnavailableError(Exception):
    """It is not known which pixels an image token came from; ``str()`` is the sentence why."""


@dataclass(frozen=True)
class Preimage:
    """Line per axis from the vision tower's coordinates to the original picture's pixels.

    ``x_picture = x_tower * x_scale + x_offset``, and the same for ``y``.
    """

    x_scale: float
    x_offset: float
    y_scale: float
    y_offset: float

    @classmethod
    def of_resize(
        cls, size: tuple[int, int], new: tuple[int, int], *, left: int = 0, top: int = 0
    ) -> Preimage:
        """Invert a resize from ``size`` to ``new``, (width, height) each.

        ``left`` and ``top`` say where the resized picture begins in the tower's coordinates
        (padding in front).
        """
        x_scale, y_scale = size[0] / new[0], size[1] / new[1]
        return cls(x_scale, -left * x_scale, y_scale, -top * y_scale)

    def boxes(self, rows: int, cols: int, patch_height: float, patch_width: float) -> FloatArray:
        """Return the boxes of a ``rows`` x ``cols`` grid of patches from the tower's corner on.

        Returns
        -------
        (rows, cols, 4) float64
            ``x0, y0, x1, y1`` in the picture's pixels.
        """
        x = np.arange(cols + 1) * patch_width * self.x_scale + self.x_offset
        y = np.arange(rows + 1) * patch_height * self.y_scale + self.y_offset
        return boxes_between(x, y)


def boxes_between(x: AnyFloats, y: AnyFloats) -> FloatArray:
    """Return the boxes between edges of ``cols + 1`` and ``rows + 1``: (rows, cols, 4)."""
    boxes = np.empty((len(y) - 1, len(x) - 1, 4))
    boxes[..., 0], boxes[..., 2] = x[:-1], x[1:]
    boxes[..., 1], boxes[..., 3] = y[:-1, None], y[1:, None]
    return boxes


def preimage(image_processor: Any, width: int, height: int) -> Preimage:
    """Invert what a standard image processor of transformers did to a picture.

    Follows the processor's own order: pad to a square (``LlavaImageProcessor`` with ``do_pad``),
    resize (``do_resize``, ``size``), centre crop (``do_center_crop``, ``crop_size``). Padding on
    the right and at the bottom moves nothing and so needs no undoing. Processors of CLIP, SigLIP
    and LLaVA, and others with the same pipeline, are inverted, of either back end.

    Raises
    ------
    MapUnavailableError
        If the processor has a pipeline of its own.
    """
    _require_steps(
        image_processor,
        {
            "transformers.models.llava.image_processing_llava",
            "transformers.models.llava.image_processing_pil_llava",
        },
    )
    pad_x = pad_y = 0
    side_x, side_y = width, height
    if hasattr(image_processor, "pad_to_square") and image_processor.do_pad:
        side_x = side_y = max(width, height)
        pad_x, pad_y = (side_x - width) // 2, (side_y - height) // 2
    new_x, new_y = side_x, side_y
    if getattr(image_processor, "do_resize", False):
        new_x, new_y = resized_size(image_processor.size, side_x, side_y)
    crop_x = crop_y = 0
    if getattr(image_processor, "do_center_crop", False):
        crop = _sizes(image_processor.crop_size)
        crop_x = _crop_offset(new_x, crop["width"], image_processor)
        crop_y = _crop_offset(new_y, crop["height"], image_processor)
    # PIL and torchvision map the edges of the picture to the edges of the resized one, so the two
    # axes have scales of their own whenever the new size had to be rounded.
    x_scale, y_scale = side_x / new_x, side_y / new_y
    return Preimage(x_scale, crop_x * x_scale - pad_x, y_scale, crop_y * y_scale - pad_y)


def resized_size(size: Any, width: int, height: int) -> tuple[int, int]:
    """Return ``(width, height)`` after the resize of transformers' image processors.

    ``size`` is the processor's: ``shortest_edge``, ``shortest_edge`` with ``longest_edge``,
    ``max_height`` with ``max_width``, or ``height`` with ``width``.

    Raises
    ------
    MapUnavailableError
        For any other size.
    """
    sizes = _sizes(size)
    short, long = min(width, height), max(width, height)
    if "shortest_edge" in sizes and "longest_edge" in sizes:
        edge, limit = sizes["shortest_edge"], sizes["longest_edge"]
        exact: float = edge
        if long / short * edge > limit:
            exact = limit * float(short) / float(long)
            edge = round(exact)
        if short == edge:
            return width, height
        # The same products in the same order as transformers': truncation depends on it.
        if width < height:
            return edge, int(exact * height / width)
        return int(exact * width / height), edge
    if "shortest_edge" in sizes:
        edge = sizes["shortest_edge"]
        new_long = int(edge * long / short)
        return (edge, new_long) if width <= height else (new_long, edge)
    if "max_height" in sizes and "max_width" in sizes:
        scale = min(sizes["max_height"] / height, sizes["max_width"] / width)
        return int(width * scale), int(height * scale)
    if "height" in sizes and "width" in sizes:
        return sizes["width"], sizes["height"]
    raise MapUnavailableError(
        f"no map over pixels: the image processor resizes to {sizes}, which is not inverted here"
    )


def paint(
    grids: Sequence[Grid],
    values: npt.ArrayLike,
    layout: TokenLayout,
    image: int = 0,
    *,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Paint a map over the picture's pixels.

    Every pixel gets the mean of the boxes over it, weighted by the area they share.

    Parameters
    ----------
    grids : sequence of Grid
        Usually ``layout.grids``; those of other pictures are passed over.
    values : (P,) array
        One value per image token, in the order of ``layout.image_positions``.
    layout : TokenLayout
        Where the grids' positions are looked up.
    image : int
        Which picture.
    size : (width, height), optional
        Paint over a copy of the picture of this size instead of the original's.

    Returns
    -------
    (height, width) float32
        NaN where no token looks (pixels that the processor cropped away).

    Raises
    ------
    InputError
        If there is no such picture, no map for it, or not one value per image token.
    """
    if not 0 <= image < len(layout.image_sizes):
        raise InputError(f"image={image}, but the prompt has {len(layout.image_sizes)} picture(s)")
    positions = layout.image_positions
    array = np.asarray(values, dtype=np.float64)
    if array.shape != positions.shape:
        raise InputError(
            f"a map needs one value per image token ({positions.size}), not shape {array.shape}"
        )
    own_grids = [grid for grid in grids if grid.image == image]
    if not own_grids:
        raise InputError(layout.grids_missing or f"picture {image} has no grid to paint")
    full_width, full_height = layout.image_sizes[image]
    width, height = size or (full_width, full_height)
    total = np.zeros((height, width))
    covered = np.zeros((height, width))
    for grid in own_grids:
        boxes = grid.values(array, positions)
        over_x = _overlaps(grid.x_edges * (width / full_width), width)
        over_y = _overlaps(grid.y_edges * (height / full_height), height)
        total += over_y @ boxes @ over_x.T
        covered += np.outer(over_y.sum(axis=1), over_x.sum(axis=1))
    visible = covered > SEEN
    painted = np.full((height, width), np.nan, dtype=np.float32)
    painted[visible] = total[visible] / covered[visible]
    return painted


def read_off(
    grids: Sequence[Grid],
    pixels: Sequence[npt.ArrayLike],
    layout: TokenLayout,
) -> FloatArray:
    """Read values over pixels off at every image token's place: what :func:`paint` goes back to.

    Parameters
    ----------
    grids : sequence of Grid
        Usually ``layout.grids``.
    pixels : sequence of (height, width)
        Values over each of the prompt's pictures.
    layout : TokenLayout
        Where the grids' positions are looked up.

    Returns
    -------
    (P,) float64
        The mean over the pixels under the token's box, by area; over its patches, as it looks at
        them, where they are shared. NaN for a token without a place in a picture.
    """
    positions = layout.image_positions
    read = np.full(positions.size, np.nan)
    for grid in grids:
        values = np.asarray(pixels[grid.image], dtype=np.float64)
        height, width = values.shape
        over_x, over_y = _overlaps(grid.x_edges, width), _overlaps(grid.y_edges, height)
        area = np.outer(over_y.sum(axis=0), over_x.sum(axis=0))
        sums = over_y.T @ values @ over_x
        means = np.divide(sums, area, out=np.zeros_like(sums), where=area > SEEN)
        places = np.searchsorted(positions, grid.positions)
        if isinstance(grid, SharedGrid):
            read[places] = np.tensordot(grid.looks, means, axes=2)
        else:
            read[places] = means
    return read


def _overlaps(edges: FloatArray, pixels: int) -> FloatArray:
    """Return ``(pixels, boxes)``: the length that a pixel shares with an interval of ``edges``."""
    start = np.arange(pixels, dtype=np.float64)[:, None]
    shared = np.minimum(start + 1, edges[:, 1]) - np.maximum(start, edges[:, 0])
    lengths: FloatArray = np.maximum(shared, 0.0)
    return lengths


def _sizes(size: Any) -> dict[str, int]:
    """Read the entries of a plain dict or of transformers' ``SizeDict`` that are set."""
    items = size.items() if isinstance(size, Mapping) else dict(size).items()
    return {name: int(value) for name, value in items if value}


def _crop_offset(side: int, crop: int, image_processor: Any) -> int:
    """Return where the crop starts in the resized picture; negative where it was padded."""
    if side >= crop:
        return (side - crop) // 2
    # Of an odd padding, numpy's crop (the PIL back end) puts the larger half first, torchvision's
    # the smaller half.
    odd_half_first = getattr(image_processor, "backend", "pil") == "pil"
    padding = crop - side
    return -(ceil(padding / 2) if odd_half_first else padding // 2)


def require_pipeline(image_processor: Any, *models: str) -> None:
    """Refuse an image or video processor whose steps are not those of one of these models.

    ``models`` are folders of ``transformers.models``; their image processors, of either back end,
    and their video processors are inverted.

    Raises
    ------
    MapUnavailableError
        If it has steps of its own.
    """
    modules = {
        f"transformers.models.{model}.{kind}{model}"
        for model in models
        for kind in ("image_processing_", "image_processing_pil_", "video_processing_")
    }
    _require_steps(image_processor, modules)


def _require_steps(image_processor: Any, modules: Collection[str]) -> None:
    for step in ("_preprocess", "resize", "center_crop"):
        module = getattr(getattr(image_processor, step, None), "__module__", "")
        if module not in modules and module not in _SHARED_STEPS:
            name = type(image_processor).__name__
            raise MapUnavailableError(
                f"no map over pixels: what {name} does to a picture is not inverted here"
            )
