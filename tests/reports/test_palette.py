"""One palette: pages and figures have the same colours, and all of them have contrast."""

from __future__ import annotations

import re
from importlib import resources

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.support.synthetic import synthetic_flow
from vlmflow.lvlm.layout import SEGMENTS
from vlmflow.reports.explain.page import write_report
from vlmflow.reports.figures.all_figures import segment_figure
from vlmflow.reports.palette import DARK, GREY, LIGHT, MAP_SCALE, PRINT, SERIES


def luminance(colour):
    """Relative luminance of a colour (WCAG 2.2)."""
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(first, second):
    darker, lighter = sorted([luminance(first) + 0.05, luminance(second) + 0.05])
    return lighter / darker


@pytest.mark.parametrize("theme", [LIGHT, DARK, PRINT], ids=["light", "dark", "print"])
def test_texts_and_lines_have_contrast(theme):
    # WCAG 2.2: 4.5 for text, 3 for lines and marks
    for name in ("ink", "soft", "quiet", "good", "bad"):
        assert contrast(theme[name], theme["paper"]) >= 4.5
        assert contrast(theme[name], theme["mark"]) >= 4.5
    assert contrast(theme["on-accent"], theme["accent"]) >= 4.5
    assert all(contrast(theme[segment], theme["paper"]) >= 3 for segment in SEGMENTS)


def test_curves_of_figures_have_contrast_and_differ():
    assert all(contrast(colour, LIGHT["paper"]) >= 3 for colour in (*SERIES, GREY))
    assert len(set(SERIES)) == len(SERIES)


def test_a_segment_has_one_colour_in_figures_and_on_the_page(tmp_path):
    flow = synthetic_flow(layers=3)
    lines = segment_figure(flow).axes[0].get_lines()
    drawn = [to_hex(line.get_color()) for line in lines[: len(SEGMENTS)]]
    page = write_report(flow, tmp_path / "page.html").read_text("utf-8")
    styled = [re.search(rf"--{segment}: (#[0-9a-f]{{6}});", page)[1] for segment in SEGMENTS]
    assert drawn == styled == [LIGHT[segment] for segment in SEGMENTS]
    assert f'"mapScale":"{MAP_SCALE.capitalize()}"' in page
    assert MAP_SCALE in matplotlib.colormaps


def test_templates_and_figures_define_no_colours_of_their_own():
    reports = resources.files("vlmflow.reports")
    named = re.compile(r"#[0-9a-fA-F]{6}\b")
    for folder in ("templates", "figures", "study", "cliff", "explain"):
        for entry in (reports / folder).iterdir():
            if entry.name.endswith((".py", ".js", ".css", ".j2")):
                # Of the hatching over what is not seen, which is the same in every theme.
                lines = [
                    line for line in entry.read_text("utf-8").splitlines() if "hatch" not in line
                ]
                assert named.findall("\n".join(lines).replace("#ffffff", "")) == [], entry.name
