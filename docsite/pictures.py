"""Make the pictures of the README and of docs/: pages that vlmflow wrote, seen in a browser.

    python -m docsite.pictures            # all of them, into docs/figures
    python -m docsite.pictures cliff      # those whose name holds a word

Needs Chromium and playwright (`pip install "vlmflow[test]"`), and some minutes: the cliff study has
its default size. Everything else that stands in docs/figures is a figure that a command writes, and
the page that shows it names the command.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

import vlmflow
from tests.support.browser import ARGUMENTS, executable

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
MARGIN = 20  # pixels around a part of a page
QUESTION = "What number is next to the brown ring?"


@cache
def model() -> Any:
    return vlmflow.load("scenes-llava")


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="vlmflow-pictures-"))


@cache
def explained() -> Any:
    """The answer that the README explains, its map tested and a truncation beside it."""
    from vlmflow.scenes.sample_files import write_samples

    write_samples(folder())
    return model().explain(
        folder() / "picture.png",
        QUESTION,
        trust=True,
        truncation=vlmflow.Truncation(layer=(2, 6), keep=(0.5, 8), rank_by="text_attention"),
    )


@cache
def report() -> Path:
    return Path(vlmflow.report(explained(), folder() / "report.html"))


@cache
def interaction() -> Path:
    flow = model().explain(*vlmflow.sample("scenes-reasoning", 3))
    return Path(vlmflow.report(flow, folder() / "interaction.html"))


@cache
def cliff() -> Path:
    vlmflow.cliff_study(model(), "scenes-reasoning", out=folder() / "cliff")
    return folder() / "cliff" / "cliff.html"


@cache
def answers() -> Path:
    vlmflow.explain_task(
        model(), str(folder() / "questions.jsonl"), out=folder() / "answers", samples=12
    )
    return folder() / "answers" / "index.html"


class Shot:
    """One page in one browser window."""

    def __init__(self, browser: Any, path: Path, width: int, height: int, scheme: str) -> None:
        self.page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_timeout(600)  # charts are drawn as they come into sight

    def window(self) -> bytes:
        return bytes(self.page.screenshot())

    def part(self, selector: str) -> bytes:
        """One element, with a margin of its background."""
        element = self.page.locator(selector).first
        element.scroll_into_view_if_needed()
        self.page.wait_for_timeout(300)
        drawn = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
        framed = io.BytesIO()
        ImageOps.expand(drawn, MARGIN, drawn.getpixel((0, 0))).save(framed, "PNG")
        return framed.getvalue()

    def choose(self, group: str, label: str) -> None:
        self.page.locator(group).get_by_role("radio", name=label, exact=True).click()
        self.settle()

    def mark(self, picture: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a box on a picture, from and to shares of its width and height."""
        picture.scroll_into_view_if_needed()
        place = picture.bounding_box()
        spots = [
            (place["x"] + x * place["width"], place["y"] + y * place["height"])
            for x, y in (start, end)
        ]
        self.page.mouse.move(*spots[0])
        self.page.mouse.down()
        self.page.mouse.move(*spots[1], steps=3)
        self.page.mouse.up()
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("body:not([aria-busy=true])")


def report_light(browser: Any) -> bytes:
    return Shot(browser, report(), 1180, 1240, "light").window()


def report_dark(browser: Any) -> bytes:
    return Shot(browser, report(), 1180, 1240, "dark").window()


def report_interaction(browser: Any) -> bytes:
    """The word "lowest" of a question at layer 4, and the lowest ring marked."""
    shot = Shot(browser, interaction(), 1180, 900, "light")
    shot.page.locator("#word-layer").fill("4")
    shot.page.locator("#sequence").get_by_role("radio", name="lowest").first.click()
    frame = shot.page.locator("#word-pictures canvas").first
    shot.mark(frame, (0.45, 0.66), (0.63, 0.84))
    return shot.part("#interaction")


def ideas_layers(browser: Any) -> bytes:
    shot = Shot(browser, report(), 1000, 800, "light")
    shot.choose("#signals", "saliency")
    return shot.part("#strip-part")


def ideas_segments(browser: Any) -> bytes:
    return Shot(browser, report(), 1000, 800, "light").part("section.charts .pair")


def ideas_truncated(browser: Any) -> bytes:
    shot = Shot(browser, report(), 1000, 800, "light")
    shot.page.locator("#word-layer").fill("4")
    shot.settle()
    return shot.part("#interaction .interaction-grid > div")


def ideas_trust(browser: Any) -> bytes:
    return Shot(browser, report(), 1000, 800, "light").part("#trust")


def cliff_page(browser: Any) -> bytes:
    return Shot(browser, cliff(), 1100, 900, "light").window()


def answers_page(browser: Any) -> bytes:
    report()  # writes the questions
    return Shot(browser, answers(), 1100, 760, "light").window()


PICTURES: dict[str, Callable[[Any], bytes]] = {
    "report-light": report_light,
    "report-dark": report_dark,
    "report-interaction": report_interaction,
    "ideas-layers": ideas_layers,
    "ideas-segments": ideas_segments,
    "ideas-truncated": ideas_truncated,
    "ideas-trust": ideas_trust,
    "answers-page": answers_page,
    "cliff-page": cliff_page,
}
"""What is drawn, by the name of its file."""


@contextmanager
def running_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = executable()
    if path is None:
        sys.exit("no Chromium was found; install one, or name it in VLMFLOW_BROWSER")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def save(name: str, picture: bytes) -> None:
    path = FIGURES / f"{name}.png"
    drawn = Image.open(io.BytesIO(picture)).convert("RGB")
    # Largest coverage keeps colours that are rare, such as those of thin lines.
    few = drawn.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"{path.relative_to(FIGURES.parents[1])}: {path.stat().st_size // 1000} kB")


def main() -> None:
    wanted = [name for name in PICTURES if not sys.argv[1:] or any(w in name for w in sys.argv[1:])]
    with running_browser() as browser:
        for name in wanted:
            save(name, PICTURES[name](browser))


if __name__ == "__main__":
    main()
