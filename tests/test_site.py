"""The documentation's site: built strictly, whole, and of one host; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

import vlmflow
from docsite import commands_page
from docsite.build import SHIM, build
from docsite.pictures import PICTURES
from tests.support.browser import running_browser
from tests.support.links import (
    addresses_in_style,
    dead_links_of_markdown,
    dead_links_of_site,
    is_elsewhere,
    read_html,
)
from vlmflow.flow.signals.registry import SIGNALS
from vlmflow.lvlm.families.table import SUPPORTED

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WRITTEN = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob(".github/**/*.md")])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("zensical", reason="the site is built by Zensical, on Python 3.11 or newer")
    folder = tmp_path_factory.mktemp("documentation") / "site"
    build(folder)
    return folder


def pages_of(part):
    """Every page of a part of the navigation."""
    if isinstance(part, str):
        return [part]
    inner = part.values() if isinstance(part, dict) else part
    return [page for item in inner for page in pages_of(item)]


def test_every_page_is_in_the_navigation_and_in_the_site(site):
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))
    for page in listed:
        assert (site / page).with_suffix(".html").is_file()


@pytest.mark.parametrize("wrong", ["[gone](gone.md)", "[nowhere](#nowhere)", "::: vlmflow.gone"])
def test_a_warning_ends_the_build_and_leaves_the_old_site(wrong, site, tmp_path):
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    settings |= {"nav": ["index.md"], "extra_css": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings), "utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docsite").symlink_to(ROOT / "docsite")
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{wrong}\n", "utf-8")
    (tmp_path / "old").mkdir()
    with pytest.raises(SystemExit, match="the documentation was not built"):
        build(tmp_path / "old", tmp_path)
    assert (tmp_path / "old").is_dir()


def test_every_link_of_the_site_leads_somewhere(site):
    assert list(dead_links_of_site(site)) == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_every_link_of_a_markdown_file_leads_to_a_file_of_the_clone(path):
    assert list(dead_links_of_markdown(path, ROOT)) == []


def test_no_page_loads_anything_from_another_host(site):
    for page in site.rglob("*.html"):
        fetched = read_html(page).fetched
        assert fetched
        assert not [address for address in fetched if is_elsewhere(address)], page
    for style in site.rglob("*.css"):
        addresses = addresses_in_style(style.read_text("utf-8"))
        assert not [address for address in addresses if is_elsewhere(address)], style


def test_a_browser_asks_no_other_host_and_finds_words(site):
    """Opened from disk, with the network gone; search runs in a page's own frame."""
    with running_browser() as browser:
        context = browser.new_context(offline=True)
        page, requests, complaints = context.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        for name in ("reference.html", "measured.html", "index.html"):
            page.goto((site / name).as_uri())
            page.wait_for_load_state("networkidle")
        page.locator(".md-search__button").click()
        page.get_by_role("combobox", name="Search").fill("knockout")
        page.locator("a[href*='#attention-knockout-beside-it'][role=option]").wait_for()
        assert complaints == []
        assert not [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
        context.close()


def test_the_reference_shows_signatures_and_errors(site):
    from docsite.sphinx_roles import ROLE  # needs what builds the site

    reference = (site / "reference.html").read_text("utf-8")
    for text in ("removal_curve", "trust_remote_code", "Raises:", "If there is no such model"):
        assert text in reference
    assert not ROLE.search(re.sub(r"<[^>]*>", "", reference))
    described = set().union(*(read_html(page).ids for page in site.glob("reference*.html")))
    public = {f"vlmflow.{name}" for name in vlmflow.__all__ if name != "__version__"}
    assert public - described == set()


def test_dead_links_and_outside_requests_are_seen(tmp_path):
    (tmp_path / "index.html").write_text(
        '<a href="gone.html"></a><a href="#nowhere"></a><p id="here"></p><a href="#here"></a>'
        f'<script src="{SHIM}"></script><link rel="canonical" href="https://example.org/">'
        '<p style="background: url(https://example.org/a.png)"></p>'
    )
    assert list(dead_links_of_site(tmp_path)) == ["index.html: gone.html", "index.html: #nowhere"]
    fetched = read_html(tmp_path / "index.html").fetched
    assert fetched == [SHIM, "https://example.org/a.png"]
    assert all(map(is_elsewhere, fetched))
    page = tmp_path / "page.md"
    page.write_text("# A *b* `c`\n[x](#a-b-c) [y](#d) ![z](no.png)\n```\n[w](no.md)\n```\n")
    assert list(dead_links_of_markdown(page, tmp_path)) == ["page.md: #d", "page.md: no.png"]


def test_the_page_of_commands_is_what_the_commands_say():
    """`python -m docsite.commands_page` writes it."""
    assert (DOCS / "commands.md").read_text("utf-8") == commands_page.page()


def test_pictures_are_small_shown_and_made_by_a_command():
    shown = "".join(path.read_text("utf-8") for path in WRITTEN)
    for picture in (DOCS / "figures").glob("*.png"):
        assert f"figures/{picture.name}" in shown, f"{picture.name} is on no page"
    for name in PICTURES:
        picture = DOCS / "figures" / f"{name}.png"
        assert picture.stat().st_size < 200_000, name
        with Image.open(picture) as opened:
            assert opened.width > 400


def test_the_readme_counts_what_there_is():
    text = (ROOT / "README.md").read_text("utf-8")
    assert f"[{len(SIGNALS.bundled())} signals]" in text
    assert f"[{len(SUPPORTED)} model types]" in text
    assert len(text.split("## Cite")[0].splitlines()) < 75, "the README is to fit one screen"
