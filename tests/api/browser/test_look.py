"""Pictures of every view, wide, dark and narrow: nothing sticks out, and they can be looked at.

`STRUCPRUNE_SCREENSHOTS=<directory>` keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from strucprune_core.run.progress import Phase
from tests.api.browser.conftest import Jobs
from tests.support.browser import enter, watched_page
from tests.support.reports import made_sizes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LOOKS = {"desktop": (1280, False), "dark": (1280, True), "phone": (390, False)}
# Scrolls sideways on purpose, or is hidden from sight.
OVERFLOWING = """() => [...document.querySelectorAll("main *")]
  .filter((node) => !node.closest(".scroll, .log, svg, .hidden-text"))
  .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map((node) => node.outerHTML.slice(0, 120))"""


Show = Callable[["Page"], None]


def show_list(jobs: Jobs) -> Show:
    jobs.queued(model="qwen3-4b", sparsity=0.5, name="Half of it, for the phone", team="search")
    jobs.queued(model="qwen3-4b", sparsity=None, pruning={"sizes": [0.2, 0.3, 0.5]})
    jobs.running(team="nlp", run="42", name="nightly_run_of_the_small_model_with_a_long_name")
    jobs.running(Phase.CALIBRATING, 0.08, model="llama-3.2-1b", sparsity=0.2)
    jobs.failed("Layer 12: the Gram matrix is not positive definite at any damping.", sparsity=0.7)
    jobs.succeeded(28.7, sparsity=0.2, team="nlp")
    jobs.succeeded(33.4)

    def show(page: Page) -> None:
        page.reload()
        page.get_by_text("not positive definite").wait_for()
        for box in page.get_by_role("checkbox", disabled=False).all():
            box.check()

    return show


def show_errors(jobs: Jobs) -> Show:
    def show(page: Page) -> None:
        page.goto("/#/new")
        page.get_by_label("Model", exact=True).fill("s3://models/../other")
        page.get_by_label("Sparsity", exact=True).fill("1.5")
        page.get_by_label("Output").fill("s3://work/out")
        page.get_by_text("Running", exact=True).click()
        page.get_by_label("Workers at most").fill("100")
        page.get_by_role("button", name="Submit job").click()
        page.get_by_text("Still to do").wait_for()
        page.locator(".field-error:not(:empty)").nth(1).wait_for()

    return show


def show_measuring(jobs: Jobs) -> Show:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    jobs.progress(job_id, Phase.ALLOCATING, 0.3)
    jobs.layers(job_id, index=[*range(30)], width_before=[1536] * 30)
    jobs.layers(job_id, index=[*range(8)], energy=[0.9, 0.5, 0.4, 0.41, 0.3, 0.32, 0.2, 0.25])

    def show(page: Page) -> None:
        page.goto(f"/#/jobs/{job_id}")
        page.get_by_text("8 of 30 layers are measured so far").wait_for()

    return show


def show_running(jobs: Jobs) -> Show:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    jobs.progress(job_id, Phase.ALLOCATING, 0.3)
    jobs.allocated(job_id)
    for layer in range(12):
        jobs.layers(job_id, index=[layer], reconstruction_error=[0.01 + 0.002 * layer])
    jobs.progress(job_id, Phase.SOLVING, 0.53)
    jobs.log(job_id, "calibration: 32 sequences of 512 tokens", "layer 0: 1536 -> 1100 channels")

    def show(page: Page) -> None:
        page.goto(f"/#/jobs/{job_id}")
        page.get_by_text("Log", exact=True).click()
        page.get_by_text("1536 -> 1100").wait_for()
        page.get_by_text("12 of 30 layers are solved").wait_for()
        page.get_by_text("As a table").click()

    return show


def show_done(jobs: Jobs) -> Show:
    job_id = jobs.succeeded(33.4)

    def show(page: Page) -> None:
        page.goto(f"/#/jobs/{job_id}")
        page.get_by_role("heading", name="Energy, by layer").wait_for()
        page.get_by_role("link", name="model.safetensors").wait_for()

    return show


def show_sizes(jobs: Jobs) -> Show:
    job_id = jobs.succeeded(report=made_sizes())

    def show(page: Page) -> None:
        page.goto(f"/#/jobs/{job_id}")
        page.get_by_role("heading", name="Accuracy kept on tasks").wait_for()
        page.get_by_role("link", name="model.safetensors").wait_for()

    return show


def show_failed(jobs: Jobs) -> Show:
    job_id = jobs.failed("Layer 12: the Gram matrix is not positive definite at any damping.")

    def show(page: Page) -> None:
        page.goto(f"/#/jobs/{job_id}")
        page.get_by_text("solving: failed").wait_for()

    return show


def show_usage(jobs: Jobs) -> Show:
    jobs.running()

    def show(page: Page) -> None:
        page.goto("/#/usage")
        page.get_by_role("region", name="Quota").wait_for()

    return show


def show_comparison(jobs: Jobs) -> Show:
    ids = [
        jobs.succeeded(perplexity, sparsity=sparsity)
        for sparsity, perplexity in ((0.2, 28.7), (0.3, 33.4), (0.5, 49.7))
    ]

    def show(page: Page) -> None:
        page.goto("/#/compare?" + "&".join(f"job={job_id}" for job_id in ids))
        page.get_by_role("heading", name="Side by side").wait_for()

    return show


VIEWS: dict[str, Callable[[Jobs], Show]] = {
    "list": show_list,
    "errors": show_errors,
    "measuring": show_measuring,
    "running": show_running,
    "done": show_done,
    "sizes": show_sizes,
    "failed": show_failed,
    "usage": show_usage,
    "comparison": show_comparison,
}


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_sticks_out(
    browser: Browser, url: str, keys: dict[str, str], jobs: Jobs, view: str
) -> None:
    look_at(browser, url, keys["acme"], view, VIEWS[view](jobs))


def test_nothing_sticks_out_of_the_form(
    browser: Browser, url: str, keys: dict[str, str], jobs: Jobs, model_uri: str
) -> None:
    """A template's further settings, a runtime that will not load the result, and an estimate."""
    further = {"damping": 0.02, "max_sparsity_by_layer": {"0": 0.1, "3": 0.25}}
    origin = jobs.queued(pruning=further, name="Nightly run of the small model", team="nlp")

    def show(page: Page) -> None:
        page.goto(f"/#/new?from={origin}")
        page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
        page.get_by_label("Output").fill(f"{jobs.prefix}/out")
        for place, label in enumerate(("Calibration text", "Evaluation text")):
            page.get_by_label(label).fill(f"{model_uri}/text.txt")
            page.get_by_label("Sequences").nth(place).fill("4")
            page.get_by_label("Tokens each").nth(place).fill("32")
        page.get_by_label("Where will it run?").select_option("MLX")
        page.get_by_label("Layout").select_option("per_layer")
        page.get_by_text("MLX will not load the result").wait_for()

    look_at(browser, url, keys["acme"], "form", show)


def look_at(browser: Browser, url: str, key: str, view: str, show: Show) -> None:
    """Check a view in every look, and keep its pictures if asked to."""
    kept = os.environ.get("STRUCPRUNE_SCREENSHOTS")
    for look, (width, dark) in LOOKS.items():
        with watched_page(browser, url, width=width, dark=dark) as page:
            enter(page, key)
            show(page)
            assert page.evaluate(OVERFLOWING) == [], look
            if kept:
                page.screenshot(path=str(Path(kept) / f"{view}-{look}.png"), full_page=True)
