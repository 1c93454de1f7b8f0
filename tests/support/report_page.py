"""Checks the HTML page of a report."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


class Page(HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]


def check_page(page: str) -> Page:
    """Everything that holds for any report."""
    parsed = Page(page)
    page.encode()
    assert "script" not in parsed.tags
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {"src", "href", "srcset", "xlink:href", "action", "style"} & names
    assert not [name for name in names if name.startswith("on")]
    css = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in css
    assert "@import" not in css
    plots = svgs(page)
    assert len(plots) >= 7
    for plot in plots:
        assert plot.get("role") == "img"
        assert plot.get("aria-label")
        for element in plot.iter():
            for value in element.attrib.values():
                assert "nan" not in value.lower().split("%")[0].split()
                assert not re.fullmatch(r"-?(inf|nan)%?", value)
            for size in ("width", "height"):
                assert not element.get(size, "0").startswith("-")
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return parsed
