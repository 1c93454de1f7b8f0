"""Links between pages, to files and to headings lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedded.stack import ROOT
from tests.docs.pages import PAGES, anchors, links, resolve

LINKING = (*PAGES, "DESIGN.md", "CHANGELOG.md", "SECURITY.md", "helm/strucprune/README.md")


@pytest.mark.parametrize("page", LINKING)
def test_links_lead_somewhere(page: str) -> None:
    ours = [target for target in links(page) if not target.startswith(("https://", "http://"))]
    assert not [target for target in ours if not _is_there(*resolve(page, target))]


def _is_there(file: Path, anchor: str) -> bool:
    if not file.is_relative_to(ROOT) or not file.exists():
        return False
    return not anchor or anchor in anchors(str(file.relative_to(ROOT)))


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        if page in found:
            continue
        found.add(page)
        for target in links(page):
            file, _ = resolve(page, target)
            if "://" not in target and file.suffix == ".md" and file.exists():
                todo.append(str(file.relative_to(ROOT)))
    assert set(PAGES) <= found


def test_anchors_are_those_of_github() -> None:
    assert {"alerts", "strucpruneapidown"} <= anchors("docs/operating.md")
