"""Pages of documentation, as the tests read them: fenced blocks with markers, links, headings.

A fenced block is marked by an HTML comment on the line above it, which readers do not see:

    <!-- run: command -->          a shell with the model and the texts in place
    <!-- run: service -->          the same, or Python, with a running service ($URL, $KEY)
    <!-- run: python -->           Python; a page's blocks share their variables
    <!-- run: service, fails -->   and must fail
    <!-- prints -->                what the block before prints, `…` for anything
    <!-- not run: REASON -->       what needs something that no test has
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from embedded.stack import ROOT

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
SETTINGS = ("command", "service", "python")
# Shell and Python is what people copy and run.
RUNNABLE = ("sh", "python")

_FENCE = re.compile(r"^```(?P<language>\S*)$\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (?P<kind>run|prints|not run)(?:: (?P<rest>.+?))? -->\n\Z")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|src(?:set)?=\"([^\"]+)\"")
_CODE = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        place: Page and line, `docs/rest.md:12`.
        language: After the fence; "" if there is none.
        kind: Of its marker: "run", "prints", "not run"; "" if it has none.
        setting: Where it runs.
        fails: Whether it must fail.
        reason: Why it is not run.
    """

    place: str
    language: str
    text: str
    kind: str = ""
    setting: str = ""
    fails: bool = False
    reason: str = ""


def read(page: str) -> str:
    """The page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = read(page) if text is None else text
    return [_block(page, text, found) for found in _FENCE.finditer(text)]


def _block(page: str, text: str, found: re.Match[str]) -> Block:
    place = f"{page}:{text.count(chr(10), 0, found.start()) + 1}"
    language, body = found["language"], found["text"]
    marker = _MARKER.search(text[: found.start()])
    if marker is None:
        return Block(place, language, body)
    rest = marker["rest"] or ""
    if marker["kind"] == "not run":
        return Block(place, language, body, "not run", reason=rest)
    setting, _, fails = rest.partition(", ")
    return Block(place, language, body, marker["kind"], setting, fails=fails == "fails")


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: dict[str, int] = {}
    result = set()
    for title in _HEADING.findall(_FENCE.sub("", read(page))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found[anchor] = found.get(anchor, -1) + 1
        result.add(f"{anchor}-{count}" if count else anchor)
    return result


def links(page: str) -> list[str]:
    """Targets of the page's links and pictures."""
    prose = _CODE.sub("", _FENCE.sub("", read(page)))
    return [one or other for one, other in _LINK.findall(prose)]


def resolve(page: str, target: str) -> tuple[Path, str]:
    """The file and the anchor ("" if none) that a relative link of a page means."""
    path, _, anchor = target.partition("#")
    return ((ROOT / page).parent / path if path else ROOT / page).resolve(), anchor
