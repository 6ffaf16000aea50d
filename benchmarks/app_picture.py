"""Draw docs/figures/app.png: the app's page in a headless Chromium, after a question and a removal.

python benchmarks/app_picture.py docs/figures/app.png
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from vlmflow.app.engine import Engine, ModelChoice
from vlmflow.app.limits import Limits
from vlmflow.app.run import listening, server_of
from vlmflow.app.server import App

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1180


def main(target: Path) -> None:
    listener = listening("127.0.0.1", 0)
    engine = Engine(ModelChoice("scenes-llava", device="cpu"), Limits())
    server = server_of(App(engine, Limits()), None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        draw(f"http://127.0.0.1:{listener.getsockname()[1]}/", target)
    finally:
        server.should_exit = True
        thread.join(30)
        engine.worker.stop()


def draw(address: str, target: Path) -> None:
    browser_path = next(path for name in NAMES if (path := shutil.which(name)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(address)
        page.get_by_role("button", name="Sample 1").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("body[data-answer]:not([aria-busy=true])", timeout=120_000)
        page.get_by_role("button", name="Answer without them").click()
        page.wait_for_selector("#removed:not([hidden])", timeout=120_000)
        page.wait_for_selector("body:not([aria-busy=true])")
        page.wait_for_timeout(500)
        # The question, what was found, and the panel of removal; what lies between is left out.
        page.evaluate(
            "for (const part of document.querySelectorAll('#result > *'))"
            " part.hidden = !part.matches('.finding, #removing')"
        )
        page.wait_for_timeout(500)
        page.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
