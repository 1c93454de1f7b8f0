"""The web page with everything behind it real: a job from the form to its downloaded weights."""

from __future__ import annotations

import hashlib
from uuid import uuid4

import httpx
import pytest

from embedded.stack import WORK_BUCKET, Stack
from tests.support.browser import enter, launched, watched_page

pytestmark = pytest.mark.services

# Of a job with the tiny model on a busy machine.
PATIENCE_MILLISECONDS = 120_000


def test_a_job_from_the_form_to_its_files(stack: Stack, uploaded: str) -> None:
    with launched() as browser, watched_page(browser, stack.api_url) as page:
        enter(page, stack.api_key, "/new")
        page.get_by_label("Model", exact=True).fill(f"{uploaded}/model")
        page.get_by_label("Output").fill(f"s3://{WORK_BUCKET}/output/{uuid4().hex}")
        page.get_by_label("Calibration text").fill(f"{uploaded}/text.txt")
        page.get_by_label("Sequences").first.fill("16")
        page.get_by_label("Tokens each").first.fill("32")
        page.get_by_label("Evaluation text").fill(f"{uploaded}/text.txt")
        page.get_by_label("Sequences").last.fill("4")
        page.get_by_label("Tokens each").last.fill("64")
        page.get_by_role("button", name="Submit job").click()
        page.get_by_role("img", name="FFN channels kept of each of 4 layers").wait_for(
            timeout=PATIENCE_MILLISECONDS
        )
        page.get_by_text("succeeded", exact=True).first.wait_for()
        row = page.get_by_role("row", name="model.safetensors")
        link = row.get_by_role("link").get_attribute("href")
        digest = row.get_by_title(hashlib.sha256(httpx.get(link or "").content).hexdigest())
        assert digest.count() == 1
        page.get_by_text("Log", exact=True).click()
        page.get_by_text("Nothing has been logged yet.").wait_for(state="detached")


def test_several_sizes_from_the_form_to_their_files(stack: Stack, uploaded: str) -> None:
    with launched() as browser, watched_page(browser, stack.api_url) as page:
        enter(page, stack.api_key, "/new")
        page.get_by_label("Model", exact=True).fill(f"{uploaded}/model")
        page.get_by_label("Output").fill(f"s3://{WORK_BUCKET}/output/{uuid4().hex}")
        page.get_by_label("How much").select_option("several_sizes")
        page.get_by_label("Several sizes", exact=True).fill("0.2, 0.4")
        page.get_by_label("Calibration text").fill(f"{uploaded}/text.txt")
        page.get_by_label("Sequences").first.fill("16")
        page.get_by_label("Tokens each").first.fill("32")
        page.get_by_label("Evaluation text").fill(f"{uploaded}/text.txt")
        page.get_by_label("Sequences").last.fill("4")
        page.get_by_label("Tokens each").last.fill("64")
        estimate = page.get_by_label("Estimate")
        estimate.get_by_role("rowheader", name="0.4").wait_for(timeout=PATIENCE_MILLISECONDS)
        page.get_by_role("button", name="Submit job").click()
        heading = page.get_by_role("heading", name="Perplexity over size")
        heading.wait_for(timeout=PATIENCE_MILLISECONDS)
        sizes = page.get_by_role("region", name="Sizes")
        assert sizes.get_by_role("rowheader").all_inner_texts() == ["dense", "0.2", "0.4"]
        row = page.get_by_role("row", name="0.4/model.safetensors")
        link = row.get_by_role("link").get_attribute("href")
        digest = row.get_by_title(hashlib.sha256(httpx.get(link or "").content).hexdigest())
        assert digest.count() == 1
