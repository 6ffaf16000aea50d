"""Links of Markdown and HTML files: where they lead, and which of them lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("source", "srcset"),
    ("iframe", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("object", "data"),
    ("embed", "src"),
    ("use", "href"),
    ("image", "href"),
}
"""Attributes whose address a browser fetches by itself."""

NAMED_ONLY = {"canonical", "next", "prev", "alternate", "edit"}
"""Relations of a <link> that nothing is fetched for."""

IN_STYLE = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
IN_MARKDOWN = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
IN_MARKUP = re.compile(r"(?:src|srcset|href)=\"([^\"]+)\"")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


@dataclass
class HtmlLinks(HTMLParser):
    """Ids of a page, the addresses that it names, and those that it fetches."""

    ids: set[str] = field(default_factory=set)
    named: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.named.append(values["href"])
        relations = set(values.get("rel", "").split())
        if tag == "link" and not relations <= NAMED_ONLY:
            self.fetched.append(values.get("href", ""))
        self.fetched += [values[name] for name in values if (tag, name) in LOADED]
        self.fetched += addresses_in_style(values.get("style", ""))


def read_html(page: Path) -> HtmlLinks:
    links = HtmlLinks()
    links.feed(page.read_text("utf-8"))
    return links


def addresses_in_style(text: str) -> list[str]:
    return [first or second for first, second in IN_STYLE.findall(text)]


def is_elsewhere(address: str) -> bool:
    """Whether an address is on another host."""
    return bool(urlsplit(address).netloc)


def dead_links_of_site(site: Path) -> Iterator[str]:
    """Name every address of a site that leads to no file or no place in it."""
    pages = {page: read_html(page) for page in site.rglob("*.html")}
    for page, links in pages.items():
        if page.name == "404.html":  # served for any address: its links are from the root
            continue
        for address in (*links.named, *links.fetched):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                yield f"{page.relative_to(site)}: {address}"
            elif parts.fragment and target.suffix == ".html":
                place = unquote(parts.fragment)
                if place not in pages[target].ids and not place.startswith("__"):
                    yield f"{page.relative_to(site)}: {address}"


def dead_links_of_markdown(page: Path, root: Path) -> Iterator[str]:
    """Name every relative link of a Markdown file that a clone does not hold."""
    text = FENCED.sub("", page.read_text("utf-8"))
    for address in (*IN_MARKDOWN.findall(text), *IN_MARKUP.findall(text)):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        place = parts.fragment if target.suffix == ".md" else ""
        inside = target.exists() and root in target.parents
        if not inside or (place and place not in headings(target)):
            yield f"{page.relative_to(root)}: {address}"


def headings(page: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as a forge makes them."""
    lines = re.findall(r"^#+ +(.*)$", FENCED.sub("", page.read_text("utf-8")), re.M)
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", line).strip().lower() for line in lines]
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in plain}
