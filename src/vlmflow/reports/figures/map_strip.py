"""The strip: one panel per layer, the map over the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vlmflow.lvlm.geometry import paint
from vlmflow.lvlm.grids import SharedGrid
from vlmflow.reports.figures.style import HEAD, WIDTH, figure_style, header, short
from vlmflow.reports.palette import GREY, MAP_SCALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmflow.result.information_flow import InformationFlow
    from vlmflow.result.map_info import MapInfo

Pixels = npt.NDArray[np.float32]

# pixels on a panel's longer side: sharp in print at its size, small in a file
_LONGEST = 400
# steps of the colour bar
_STEPS = 128

# inches
_GAP = 0.07
_TITLE = 0.17
_NOTE = 0.12
_FOOT = 0.42
_HIGHEST = 9.3
_WIDEST_PANEL = 2.6


class Place(NamedTuple):
    """A rectangle on the canvas, in inches."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> float:
        """Horizontal centre."""
        return (self.left + self.right) / 2

    def shrunk_to(self, ratio: float) -> Place:
        """Return the largest part of this shape (height over width), in the middle, at the top."""
        width = min(self.right - self.left, (self.bottom - self.top) / ratio)
        left = self.middle - width / 2
        return Place(left, self.top, left + width, self.top + width * ratio)


def draw_strip(flow: InformationFlow, signal: str, target: int, image: int, shared: bool) -> Figure:
    """See :func:`vlmflow.reports.figures.all_figures.strip_figure`."""
    about = flow.map_info(signal)
    summed = about.summed is not None
    layers: list[int | None] = [None] if summed else [*range(flow.layers)]
    maps = [flow.map(signal, layer, target) for layer in layers]
    tops = [_top(flow, values) for values in maps]
    flags = [flow.flag(signal, layer, target) for layer in layers]
    flags = [
        "empty" if flag == "ok" and top <= 0 else flag
        for flag, top in zip(flags, tops, strict=True)
    ]
    flow.token_boxes(image)  # refuses a picture that cannot be painted, before anything is drawn
    picture, grey = _small_copies(flow.pictures[image])
    height, width = grey.shape
    top_of_all = max(
        (top for top, flag in zip(tops, flags, strict=True) if flag == "ok"), default=0.0
    )

    ratio = min(max(height / width, 0.1), 1.7)
    note = 0.0 if shared or summed else _NOTE
    columns, panel = _arrange(1 + len(layers), ratio, note)
    rows = -(-(1 + len(layers)) // columns)
    row_height = _TITLE + ratio * panel + note + _GAP
    total = HEAD + rows * row_height + _FOOT
    left = (WIDTH - columns * panel - (columns - 1) * _GAP) / 2
    unseen = False
    with figure_style():
        figure = Figure(figsize=(WIDTH, total))
        frames = flow.layout.frames_label(image)
        title = about.label + (f", {frames}" if frames else "")
        header(figure, title, flow, target)
        # one canvas in inches, y downwards: much quicker than a set of axes per layer
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total, 0), autoscale_on=False)
        axes.set_axis_off()
        for index in range(1 + len(layers)):
            row, column = divmod(index, columns)
            x = left + column * (panel + _GAP)
            y = HEAD + row * row_height + _TITLE
            place = Place(x, y, x + panel, y + ratio * panel).shrunk_to(height / width)
            if index == 0:
                name = _name(flow, image)
                _write(axes, place.middle, y - 0.03, name, 7, color=GREY, va="baseline")
                _lay(axes, place, picture)
                continue
            layer, flag, top = layers[index - 1], flags[index - 1], tops[index - 1]
            _write(axes, place.middle, y - 0.03, _title(about, layer), 7, va="baseline")
            if flag != "ok":
                _draw_nothing(axes, place, grey, flag)
                continue
            painted = paint(
                flow.layout.grids, maps[index - 1], flow.layout, image, size=(width, height)
            )
            _draw_map(axes, place, grey, painted / np.float32(top_of_all if shared else top))
            unseen = unseen or not np.isfinite(painted).all()
            if note:
                text = f"max {short(top)}"
                _write(axes, place.middle, place.bottom + 0.02, text, 5.5, color=GREY, va="top")
        if top_of_all > 0:
            most = "largest of the layer" + (", all pictures" if len(flow.pictures) > 1 else "")
            _draw_scale(axes, total - 0.26, most if note else top_of_all)
        grids = [grid for grid in flow.layout.grids if grid.image == image]
        text = "patches: where query tokens look" if _shared(flow) else ""
        if len(grids) > 1:
            text = f"{' and '.join(grid.kind for grid in grids)} together, mean by area"
        if text:
            _write(axes, WIDTH - 0.1, total - 0.26, text, 6.5, color=GREY, ha="right", va="center")
        if unseen:
            text = "////  not seen by the model"
            _write(axes, 0.1, total - 0.26, text, 6.5, color=GREY, ha="left", va="center")
    return figure


def _name(flow: InformationFlow, image: int) -> str:
    """Say what is laid below the maps; which frames they are stands above all panels."""
    frames = flow.layout.frames[image] if flow.layout.frames else None
    if frames is not None:
        return "first frame" if frames.last > frames.first else "frame"
    return f"picture {image}" if len(flow.pictures) > 1 else "picture"


def _shared(flow: InformationFlow) -> list[SharedGrid]:
    return [grid for grid in flow.layout.grids if isinstance(grid, SharedGrid)]


def _top(flow: InformationFlow, values: npt.NDArray[np.float32]) -> float:
    """Largest value that is drawn: a token's, or a patch's where tokens share the picture."""
    positions = flow.layout.image_positions
    own = values.astype(np.float64)
    drawn = [grid.values(own, positions) for grid in _shared(flow)] or [own]
    return max(float(part.max(initial=0.0)) for part in drawn)


def _arrange(panels: int, ratio: float, note: float) -> tuple[int, float]:
    """Columns and the width of a panel: fits a page, leaves few places empty."""

    def width(columns: int) -> float:
        return min((WIDTH - 0.2 - (columns - 1) * _GAP) / columns, _WIDEST_PANEL, 3.2 / ratio)

    def cost(columns: int) -> tuple[bool, int, int]:
        rows = -(-panels // columns)
        height = HEAD + _FOOT + rows * (_TITLE + ratio * width(columns) + note + _GAP)
        return height > _HIGHEST, rows * columns - panels, -columns

    # a layer's number needs 0.6 inches, hence at most nine columns
    columns = panels if panels <= 5 else min(range(5, 10), key=cost)
    return columns, width(columns)


def _title(about: MapInfo, layer: int | None) -> str:
    return about.span if layer is None else f"layer {layer}"


def _small_copies(picture: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], Pixels]:
    """Return the picture at panel size, in colour and in grey (0..1)."""
    small = Image.fromarray(picture)
    small.thumbnail((_LONGEST, _LONGEST))
    grey: Pixels = np.asarray(small.convert("L"), dtype=np.float32) / np.float32(255)
    return np.asarray(small), grey


def _mixed(shares: Pixels, grey: Pixels) -> Pixels:
    """Colours of map values 0..1 over a picture: the stronger, the more they cover.

    The picture is darkened, so that stronger always means lighter, whatever lies below.
    """
    colours = matplotlib.colormaps[MAP_SCALE](shares)[..., :3]
    veil = (0.4 + 0.55 * shares)[..., None]
    ground = (0.12 + 0.4 * grey)[..., None]
    return np.asarray(veil * colours + (1 - veil) * ground, dtype=np.float32)


def _write(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    axes.text(x, y, text, fontsize=size, **{"ha": "center", **style})


def _lay(axes: Axes, place: Place, pixels: npt.NDArray[Any], **style: Any) -> None:
    """Lay an image onto the canvas."""
    extent = (place.left, place.right, place.bottom, place.top)
    axes.imshow(pixels, extent=extent, aspect="auto", **style)


def _draw_map(axes: Axes, place: Place, grey: Pixels, shares: Pixels) -> None:
    """Lay a map over the picture; what no token sees stays grey under hatching."""
    seen = np.isfinite(shares)
    if not seen.all():
        _draw_faint(axes, place, grey, "////")
    colours = _mixed(np.clip(np.nan_to_num(shares), 0, 1), grey)
    _lay(axes, place, np.dstack([colours, seen]), interpolation="nearest", zorder=2)


def _draw_nothing(axes: Axes, place: Place, grey: Pixels, flag: str) -> None:
    """Show that a map is missing, and why."""
    _draw_faint(axes, place, grey, "xxxx")
    text = flag.replace("no attention here", "no attention\nhere")
    box = {"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": "none"}
    centre = (place.top + place.bottom) / 2
    _write(axes, place.middle, centre, text, 6.5, va="center", bbox=box, zorder=3)


def _draw_faint(axes: Axes, place: Place, grey: Pixels, hatch: str) -> None:
    _lay(axes, place, 0.72 + 0.28 * grey, cmap="gray", vmin=0, vmax=1)
    corner, width = (place.left, place.top), place.right - place.left
    frame = Rectangle(corner, width, place.bottom - place.top, fill=False, hatch=hatch, linewidth=0)
    axes.add_patch(frame)
    frame.set_zorder(1)


def _draw_scale(axes: Axes, y: float, top: float | str) -> None:
    """Draw the colours: with numbers where all panels share them, with text otherwise."""
    left, right = WIDTH / 2 - 1.1, WIDTH / 2 + 1.1
    steps = np.linspace(0, 1, _STEPS, dtype=np.float32)[None]
    bar = _mixed(steps, np.full_like(steps, 0.5))
    _lay(axes, Place(left, y - 0.045, right, y + 0.045), bar, interpolation="nearest")
    if isinstance(top, str):
        ends = [(left, "0"), (right, top)]
    else:
        ends = [(left, "0"), (WIDTH / 2, short(top / 2)), (right, short(top))]
    for x, text in ends:
        axes.plot([x, x], [y - 0.045, y + 0.07], color="black", linewidth=0.6)
        _write(axes, x, y + 0.08, text, 6.5, va="top")
