"""Build the site of the documentation: strict, and without a request to any other host.

    python -m docsite.build [DIR]            # build/site; index.html opens offline

Zensical aborts on warnings, of links and of docstrings. What it would load from elsewhere (a shim
for search in pages that are opened from disk) is replaced by a file of ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIM = "https://unpkg.com/iframe-worker/shim"
"""What Zensical's offline plugin loads; no option of 0.0.73 leaves it out."""

OURS = "assets/javascripts/frame_worker.js"


def build(site: Path, root: Path = ROOT) -> None:
    """Build the site of a clone into a directory, which is replaced as a whole.

    Raises
    ------
    SystemExit
        With Zensical's words, if there is a warning or an error.
    """
    with tempfile.TemporaryDirectory(prefix="vlmflow-docs-") as folder:
        work = Path(folder)
        shutil.copy(root / "mkdocs.yml", work)
        shutil.copytree(root / "docs", work / "docs")  # a link out of the project is refused
        for part in ("docsite", "src"):
            (work / part).symlink_to(root / part, target_is_directory=True)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{done.stderr}\nthe documentation was not built")
        built = work / "build" / "site"
        load_nothing_from_elsewhere(built)
        shutil.rmtree(site, ignore_errors=True)
        site.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(built, site)


def load_nothing_from_elsewhere(site: Path) -> None:
    """Put our own shim in place of the one that pages would load from another host."""
    shutil.copy(ROOT / "docsite" / "frame_worker.js", site / OURS)
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        ours = Path(os.path.relpath(site / OURS, page.parent)).as_posix()
        page.write_text(text.replace(SHIM, ours), "utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    build(target)
    print(f"the documentation is in {target}; open {target / 'index.html'}")
