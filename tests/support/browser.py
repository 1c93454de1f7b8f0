"""A real Chromium for the tests of the web page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VARIABLE = "STRUCPRUNE_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: tests may run as root, and show only our own page. The rest keeps it quiet.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MILLISECONDS = 15_000


def find_chromium() -> str | None:
    """Path of a Chromium: what the variable names, or the first on the PATH."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return named if Path(named).is_file() else None
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A running browser; skips the test where there is none."""
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"no Chromium: install one on the PATH, or set {VARIABLE} to its path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*_FLAGS])
        yield browser
        browser.close()


@contextmanager
def watched_page(
    browser: Browser, url: str, *, width: int = 1280, dark: bool = False
) -> Iterator[Page]:
    """A page in a context of its own; the test fails for any error that the page has.

    Args:
        browser: See `launched`.
        url: What relative addresses begin with.
        width: Of the window, in CSS pixels.
        dark: Whether the user prefers dark colours.
    """
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": 860},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    context.set_default_timeout(_PATIENCE_MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    # A violation of the page's own policy is told on the console only.
    page.on(
        "console",
        lambda message: (
            errors.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    yield page
    context.close()
    assert errors == []


def enter(page: Page, key: str, where: str = "") -> None:
    """Open the page and give it the key.

    Args:
        page: See `watched_page`.
        key: The API key.
        where: What stands behind the `#`, such as `/new`.
    """
    page.goto(f"/#{where}")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Continue").click()
    page.get_by_label("API key").wait_for(state="detached")


def fill_form(page: Page, model_uri: str, output: str) -> None:
    """Fill in what the form of a new job needs.

    Args:
        page: The page.
        model_uri: Prefix of `model` and `text.txt`.
        output: Prefix of the result.
    """
    page.goto("/#/new")
    page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
    page.get_by_label("Output").fill(output)
    page.get_by_label("Calibration text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Sequences").first.fill("4")
    page.get_by_label("Tokens each").first.fill("32")
