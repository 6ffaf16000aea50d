"""Figures for papers: what they show, that it can be read, and that drawing changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from tests.support.synthetic import object_box, synthetic_flow
from vlmflow.errors import InputError
from vlmflow.lvlm.videos import Frames
from vlmflow.reports.figures.all_figures import save_figures, segment_figure, strip_figure
from vlmflow.reports.figures.style import drawable, short
from vlmflow.result.map_info import MapInfo


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def assert_readable(figure) -> None:
    """No text that is drawn leaves the figure or lies on another."""
    canvas = FigureCanvasAgg(figure)
    drawn: list[Text] = []  # not every text of a figure is: ticks beyond an axis are not
    draw = Text.draw
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(
            Text, "draw", lambda text, renderer: drawn.append(text) or draw(text, renderer)
        )
        warnings.simplefilter("error")  # a missing letter is only a warning
        canvas.draw()
    renderer = canvas.get_renderer()
    shown = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in drawn
        if text.get_text() and text.get_visible()
    ]
    assert len(shown) > 5
    for text, box in shown:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1
        assert inside, f"{text!r} leaves the figure"
        assert box.y1 <= figure.bbox.y1 + 1, f"{text!r} leaves the figure"
    for (text, box), (other_text, other) in itertools.combinations(shown, 2):
        # half a pixel of slack: extents are rounded outwards
        apart = (
            box.x1 <= other.x0 + 0.5
            or other.x1 <= box.x0 + 0.5
            or box.y1 <= other.y0 + 0.5
            or other.y1 <= box.y0 + 0.5
        )
        assert apart, f"{text!r} lies on {other_text!r}"


def maps_of(figure) -> list[np.ndarray]:
    """The RGBA images: one per layer that has a map."""
    arrays = [image.get_array() for image in figure.axes[0].images]
    return [np.asarray(array) for array in arrays if array.ndim == 3 and array.shape[2] == 4]


def only(flow, *signals):
    """The same result with some of its signals: fewer figures to draw."""
    maps = {signal: flow.maps[signal] for signal in signals}
    return dataclasses.replace(flow, maps=maps, flags={name: flow.flags[name] for name in maps})


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1},
        {"layers": 12},
        {"layers": 16, "sizes": ((200, 600),)},
        {"layers": 32, "hostile": True},
        {"layers": 40, "sizes": ((300, 300),), "without_attention": (0, 7, 8)},
    ],
    ids=str,
)
def test_nothing_overlaps_at_any_depth(options):
    flow = synthetic_flow(**options)
    assert_readable(strip_figure(flow, "llava_cam"))
    assert_readable(strip_figure(flow, "attention", 1, scale="shared"))
    assert_readable(segment_figure(flow))


def test_strip_names_every_layer_from_zero_and_says_why_one_is_missing():
    flow = synthetic_flow(layers=12, without_attention=(3,))
    labels = texts(strip_figure(flow, "llava_cam"))
    assert [label for label in labels if label.startswith("layer ")] == [
        f"layer {layer}" for layer in range(12)
    ]
    assert labels.count("empty") == 1
    assert labels.count("undefined") == 1
    assert "no attention\nhere" in texts(strip_figure(flow, "attention"))
    assert len(maps_of(strip_figure(flow, "llava_cam"))) == 10


def test_summed_signals_have_one_map():
    figure = strip_figure(synthetic_flow(layers=12), "flow_map")
    assert len(maps_of(figure)) == 1
    assert "layers 0 to 11, summed" in texts(figure)


def test_one_map_says_what_it_is_over():
    """Some of the layers, or the whole model, of which it is not a sum."""
    flow = only(synthetic_flow(layers=12), "flow_map")
    for info, said in (
        ({"summed": (0, 5)}, "layers 0 to 5, summed"),
        ({"summed": (0, 0)}, "layer 0"),
        ({"summed": (0, 11), "whole": True}, "whole model"),
    ):
        about = {"flow_map": MapInfo("a map", **info)}
        assert said in texts(strip_figure(dataclasses.replace(flow, about=about), "flow_map"))


def test_map_lies_over_the_object_and_leaves_unseen_margins_open():
    flow = synthetic_flow(layers=4, sizes=((320, 240),))
    pixels = maps_of(strip_figure(flow, "attention"))[0]
    assert pixels.shape == (240, 320, 4)
    # the central square is seen
    assert (pixels[:, 40:280, 3] == 1).all()
    assert (pixels[:, :40, 3] == 0).all()
    assert (pixels[:, 280:, 3] == 0).all()
    y, x = np.unravel_index(pixels[..., 1].argmax(), pixels.shape[:2])
    x0, y0, x1, y1 = object_box((320, 240))
    assert x0 <= x <= x1
    assert y0 <= y <= y1
    assert "////  not seen by the model" in texts(strip_figure(flow, "attention"))
    square = synthetic_flow(layers=4, sizes=((240, 240),))
    assert "////  not seen by the model" not in texts(strip_figure(square, "attention"))


def test_scales_differ_in_what_the_brightest_colour_means():
    flow = synthetic_flow(layers=8)
    own = [pixels[..., 1].max() for pixels in maps_of(strip_figure(flow, "attention"))]
    shared = [
        pixels[..., 1].max() for pixels in maps_of(strip_figure(flow, "attention", scale="shared"))
    ]
    assert min(own) > 0.8  # every layer reaches the end of its own scale
    assert shared[0] > 0.8 > 0.5 > shared[-1]
    labels = texts(strip_figure(flow, "attention"))
    assert f"max {short(float(flow.map('attention', 7).max()))}" in labels
    assert not any(
        "max " in label for label in texts(strip_figure(flow, "attention", scale="shared"))
    )


def test_segment_curves_show_the_shares():
    flow = synthetic_flow(layers=9, without_attention=(4,))
    axes = segment_figure(flow, 2).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["system", "image", "user", "earlier answer"]
    drawn = np.asarray(lines["image"].get_ydata())
    expected = flow.attention_share[:, 2, 1].copy()
    assert np.isnan(drawn[4])
    np.testing.assert_array_equal(np.delete(drawn, 4), np.delete(expected, 4))
    looks = {(str(line.get_linestyle()), line.get_marker()) for line in lines.values()}
    assert len({marker for _, marker in looks}) == 4
    assert "no attention here" in texts(axes.figure)


def test_texts_of_models_are_texts():
    flow = synthetic_flow(layers=2, hostile=True)
    figure = strip_figure(flow, "attention", 1)
    joined = "".join(texts(figure))
    assert "alert('$x_1$')" in joined
    assert "⟦U+202E⟧" in joined
    for text in figure.findobj(Text):
        assert not (text.get_text() and text.get_parse_math())


def test_letters_the_font_lacks_are_spelled_out():
    assert drawable("Füße ≤ λ\n\tx") == "Füße ≤ λ x"
    assert drawable("a\u7ea2\x07") == "a⟦U+7EA2⟧⟦U+0007⟧"


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (0.3141, "0.31"), (1.0, "1"), (2e-4, "2e-4"), (3.14e-12, "3.1e-12"), (5000, "5e3")],
)
def test_short_numbers(value, written):
    assert short(value) == written


def test_files_are_written_with_fonts_inside_and_the_same_each_time(tmp_path):
    flow = only(
        synthetic_flow(layers=2, grid=(3, 3), sizes=((60, 40), (40, 40))), "saliency", "flow_map"
    )
    paths = save_figures(flow, tmp_path / "one")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "one").iterdir()}
    names = {path.name for path in paths}
    assert names >= {
        "segments.png",
        "segments.pdf",
        "maps_flow_map.pdf",
        "maps_saliency_shared.png",
        "maps_saliency_picture1.pdf",
    }
    assert "maps_flow_map_shared.png" not in names
    for path in paths:
        if path.suffix == ".pdf":
            content = path.read_bytes()
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
        else:
            with Image.open(path) as picture:
                assert picture.width == round(7.16 * 300)
    again = save_figures(only(flow, "flow_map"), tmp_path / "two")
    for path in again:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()


def test_what_is_not_there_is_refused_and_nothing_written(tmp_path):
    flow = synthetic_flow(layers=3)
    for call, message in (
        (lambda: strip_figure(flow, "gradcam"), "signal='gradcam'"),
        (lambda: strip_figure(flow, "flow_map", 9), "target=9, but this result has 5 targets"),
        (lambda: strip_figure(flow, "flow_map", image=1), "image=1"),
        (lambda: strip_figure(flow, "flow_map", scale="log"), "'layer' or 'shared'"),
        (lambda: segment_figure(flow, 9), "target=9, but this result has 5 targets"),
        (lambda: save_figures(flow, tmp_path / "new", ("gif",)), "png or pdf"),
        (lambda: save_figures(flow, tmp_path / "new", ()), "png or pdf"),
        (lambda: save_figures(flow, tmp_path / "new", target=7), "target=7"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    code = """
import sys
from tests.support.synthetic import synthetic_flow
from vlmflow.reports.figures.all_figures import save_figures
assert "matplotlib" not in sys.modules, "loaded before anything is drawn"
import matplotlib
matplotlib.rcParams.update({"font.size": 23, "text.parse_math": True, "axes.grid": True})
before = dict(dict.items(matplotlib.rcParams))
save_figures(synthetic_flow(layers=2, grid=(2, 2)), sys.argv[1], ("png",))
assert dict(dict.items(matplotlib.rcParams)) == before
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=True)


def test_the_look_does_not_depend_on_the_callers_settings(tmp_path):
    flow = only(synthetic_flow(layers=2, grid=(2, 2)), "saliency")
    plain = save_figures(flow, tmp_path / "plain", ("png",))
    with matplotlib.rc_context({"font.size": 23, "axes.grid": True, "savefig.bbox": "tight"}):
        other = save_figures(flow, tmp_path / "other", ("png",))
    for path, other_path in zip(plain, other, strict=True):
        assert path.read_bytes() == other_path.read_bytes()


@pytest.mark.parametrize("layers", [4, 12, 40])
@pytest.mark.parametrize("size", [(320, 240), (120, 400)])
def test_a_strip_of_a_video_names_its_frames(layers, size):
    """Also with two videos, and times that are long to write."""
    flow = synthetic_flow(layers=layers, sizes=(size,) * 3)
    frames = tuple(Frames(video, 2, 3, (100.04, 100.08)) for video in range(2))
    for shown in ((*frames, None), (frames[0], frames[0], None)):
        layout = dataclasses.replace(flow.layout, frames=shown)
        figure = strip_figure(dataclasses.replace(flow, layout=layout), "saliency", image=1)
        title = f", {layout.frames_label(1)} · whole answer"
        assert any(text.endswith(title) for text in texts(figure))
        assert "first frame" in texts(figure)
        assert_readable(figure)
    assert "picture 2" in texts(strip_figure(flow, "saliency", image=2))
