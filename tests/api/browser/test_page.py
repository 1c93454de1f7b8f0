"""The web page in a real Chromium, on the real API: what people do with it."""

from __future__ import annotations

import ast
import csv
import json
import re
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI

from api.jobs.ledger import Ledger
from api.jobs.record import Claim
from api.jobs.sequel import retry
from api.jobs.state import JobState
from strucprune_core.report.document import Continuation, Loading, SampleReport
from strucprune_core.run.progress import Phase
from strucprune_core.spec import JobSpec
from tests.api.browser.conftest import WEIGHTS, Jobs, made_report
from tests.support.browser import enter, fill_form, watched_page
from tests.support.claims import claim_job
from tests.support.device_tables import made_table
from tests.support.rates import RATES
from tests.support.reports import made_prediction, made_sizes, made_speed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

SUBMIT = "Submit job"


def state_of(jobs: Jobs, job_id: str) -> JobState:
    record = jobs.services.ledger.get(job_id)
    assert record is not None
    return record.state


def test_the_key(browser: Browser, url: str, keys: dict[str, str]) -> None:
    with watched_page(browser, url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto("/")
        field = page.get_by_label("API key")
        field.fill("spk_wrong")
        field.press("Enter")
        page.get_by_role("alert").filter(has_text="key").wait_for()
        assert page.get_by_label("API key").get_attribute("aria-invalid") == "true"
        assert page.evaluate("sessionStorage.length") == 0
        enter(page, keys["acme"])
        page.get_by_text("There are no jobs yet.").wait_for()
        page.reload()
        page.get_by_text("There are no jobs yet.").wait_for()
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.get_by_role("button", name="Forget key").click()
        page.get_by_label("API key").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        assert not [address for address in asked if keys["acme"] in address]


def test_a_key_is_handed_to_new_tabs_where_its_user_asks_for_it(
    browser: Browser, url: str, keys: dict[str, str]
) -> None:
    with watched_page(browser, url) as page:
        enter(page, keys["acme"])
        page.get_by_text("There are no jobs yet.").wait_for()
        alone = page.context.new_page()
        alone.goto("/")
        alone.get_by_label("API key").wait_for()  # Nobody has asked for it.
        page.get_by_role("button", name="Forget key").click()

        page.get_by_label("API key").fill(keys["acme"])
        page.get_by_label("Hand it on to new tabs").check()
        page.get_by_role("button", name="Continue").click()
        page.get_by_text("There are no jobs yet.").wait_for()
        second = page.context.new_page()
        second.goto("/#/new")
        second.get_by_role("heading", name="New job").wait_for()
        page.close()
        third = second.context.new_page()  # The second hands it on as well.
        third.goto("/")
        third.get_by_text("There are no jobs yet.").wait_for()
        for tab in (second, third):
            assert tab.evaluate("localStorage.length + document.cookie.length") == 0
            assert tab.evaluate("indexedDB.databases().then((found) => found.length)") == 0
        third.get_by_role("button", name="Forget key").click()
        second.get_by_label("API key").wait_for()
        assert second.evaluate("sessionStorage.length") == 0
        second.reload()
        second.get_by_label("API key").wait_for()


def test_forgetting_a_key_leaves_other_keys_alone(
    browser: Browser, url: str, keys: dict[str, str]
) -> None:
    with watched_page(browser, url) as page:
        tabs = [page, page.context.new_page()]
        tabs[1].goto("/")
        for tab, name in zip(tabs, ("acme", "acme-reader"), strict=True):
            tab.goto("/")
            tab.get_by_label("API key").fill(keys[name])
            if name == "acme-reader":
                tab.get_by_label("Hand it on to new tabs").check()
            tab.get_by_role("button", name="Continue").click()
            tab.get_by_text("There are no jobs yet.").wait_for()
        tabs[1].get_by_role("button", name="Forget key").click()
        tabs[1].get_by_label("API key").wait_for()
        page.reload()
        page.get_by_text("There are no jobs yet.").wait_for()


def test_the_list_is_filtered_and_alive(page: Page, jobs: Jobs) -> None:
    running = jobs.running(team="nlp")
    jobs.queued(model="other", team="search")
    page.reload()
    page.get_by_text("solving 12 of 30 · 41%").wait_for()
    page.get_by_label("Label", exact=True).fill("team=nlp")
    page.get_by_label("Label", exact=True).press("Enter")
    page.get_by_role("link", name="other, 30% sparsity").wait_for(state="detached")
    page.get_by_role("link", name="smollm2-135m, 30% sparsity").wait_for()
    assert page.get_by_role("checkbox").count() == 1
    jobs.progress(running, Phase.EVALUATING, 0.9)
    page.get_by_text("evaluating 27 of 30 · 90%").wait_for()
    page.get_by_label("State").select_option("failed")
    page.get_by_text("No job matches the filters.").wait_for()
    assert "state=failed" in page.url
    assert "label=team%3Dnlp" in page.url


def test_the_list_says_what_each_job_is(page: Page, jobs: Jobs) -> None:
    named = jobs.queued(name="Nightly <b>", team="nlp")
    jobs.queued(model="other", sparsity=None, pruning={"sizes": [0.2, 0.5]})
    jobs.queued(model="third", sparsity=None, pruning={"target": {"bytes": 70_000_000}})
    page.reload()
    row = page.get_by_role("listitem").filter(has=page.get_by_role("link", name="Nightly <b>"))
    row.get_by_text("smollm2-135m, 30% sparsity").wait_for()
    assert row.get_by_text("queued", exact=True).is_visible()
    assert row.get_by_text("just now").is_visible()
    assert page.get_by_role("link", name="other, 20%, 50% sparsity").is_visible()
    assert page.get_by_role("link", name="third, at most 70 MB").is_visible()
    page.get_by_role("link", name="Nightly <b>").click()
    page.get_by_role("heading", name="Nightly <b>").wait_for()
    assert page.title() == "Nightly <b> · StrucPrune"
    page.goto(f"/#/new?from={named}")
    page.get_by_role("heading", name="New job").wait_for()
    assert page.get_by_label("Name").input_value() == "Nightly <b>"


def test_what_jobs_say_is_text(page: Page, jobs: Jobs) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    job_id = jobs.failed(hostile, team=hostile)
    page.reload()
    page.get_by_text(hostile).first.wait_for()
    page.goto(f"/#/jobs/{job_id}")
    page.get_by_text(hostile).first.wait_for()
    assert page.locator("main img").count() == 0


def test_a_job_is_submitted(page: Page, jobs: Jobs, model_uri: str) -> None:
    from playwright.sync_api import expect

    page.goto("/#/new")
    output = page.get_by_label("Output")
    model = page.get_by_label("Model", exact=True)
    sparsity = page.get_by_label("Sparsity", exact=True)
    model.fill(f"{model_uri}/nowhere")
    output.fill(f"{jobs.prefix}/out")
    sparsity.fill("1.5")
    page.get_by_label("Calibration text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Sequences").first.fill("4")
    page.get_by_label("Tokens each").first.fill("many")
    page.get_by_role("button", name=SUBMIT).click()

    # What the schema says comes first, at the fields; the focus is at the first of them.
    page.get_by_text("did you mean 0.015").wait_for()
    assert sparsity.get_attribute("aria-invalid") == "true"
    assert sparsity.evaluate("node => node === document.activeElement")
    page.get_by_text("It must be a whole number").wait_for()
    sparsity.fill("0.25")
    page.get_by_label("Tokens each").first.fill("32")

    # Then what only the storage knows.
    page.locator('[data-pointer="/model/uri"] .field-error:not(:empty)').wait_for()
    assert sparsity.get_attribute("aria-invalid") is None
    model.fill(f"{model_uri}/model")
    estimate = page.get_by_role("complementary", name="Estimate")
    estimate.get_by_text("Memory by step").wait_for()
    assert estimate.get_by_text("transformers").is_visible()
    assert estimate.get_by_text("does not load", exact=True).count() == 2  # per-layer widths
    page.get_by_label("block configs").check()
    expect(estimate.get_by_text("does not load", exact=True)).to_have_count(1)

    page.get_by_role("button", name=SUBMIT).click()
    page.get_by_role("heading", name="model, 25% sparsity").wait_for()
    record = jobs.services.ledger.get(page.url.rpartition("/")[2])
    assert record is not None
    assert record.spec["pruning"]["exports"] == ["block_configs"]
    assert record.spec["calibration"]["sequence_length"] == 32
    assert record.spec["evaluation"] is None


def test_a_speedup_is_asked_for(page: Page, jobs: Jobs, model_uri: str) -> None:
    fill_form(page, model_uri, f"{jobs.prefix}/out")
    assert page.get_by_label("Times as fast").is_hidden()
    page.get_by_label("How much").select_option("speedup")
    page.get_by_label("Times as fast").fill("1.001")
    assert page.get_by_label("Sparsity", exact=True).is_hidden()
    page.locator('[data-pointer="/pruning/target/device"] select').select_option(
        "epyc-zen4-1-thread-float32"
    )
    page.get_by_label("Context length").fill("64")
    estimate = page.get_by_role("complementary", name="Estimate")
    estimate.get_by_text("Predicted decode").wait_for()
    assert estimate.get_by_text("AMD EPYC").is_visible()
    page.get_by_role("button", name=SUBMIT).click()
    page.get_by_role("heading", name="model, decode 1.001 times as fast").wait_for()
    job_id = page.url.rpartition("/")[2]
    record = jobs.services.ledger.get(job_id)
    assert record is not None
    target = record.spec["pruning"]["target"]
    assert (target["speedup"], target["of"], target["context_tokens"]) == (1.001, "decode", 64)

    # A job that is made of it asks for the same; another target leaves the device out.
    page.goto(f"/#/new?from={job_id}")
    page.get_by_label("How much").select_option("parameters")
    page.get_by_label("Parameters at most").fill("0.0001")
    page.get_by_label("Output").fill(f"{jobs.prefix}/other")
    page.locator("[data-pointer] .field-error").get_by_text("least that can be reached").wait_for()


def test_a_table_of_a_device_stays_with_its_job(page: Page, jobs: Jobs, model_uri: str) -> None:
    table = made_table().model_dump(mode="json")
    target = {"speedup": 1.01, "context_tokens": 64, "device_table": table}
    job_id = jobs.queued(pruning={"target": target})
    page.goto(f"/#/new?from={job_id}")
    sent: list[dict[str, Any]] = []
    page.on("request", lambda request: sent.append(request.post_data_json or {}))
    page.get_by_label("Times as fast").fill("1.02")
    page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
    page.get_by_label("Output").fill(f"{jobs.prefix}/out")
    page.get_by_label("Calibration text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Evaluation text").fill("")
    page.get_by_label("Sequences").first.fill("4")
    page.get_by_label("Tokens each").first.fill("32")
    estimate = page.get_by_role("complementary", name="Estimate")
    estimate.get_by_text("made for tests").wait_for()
    assert sent[-1]["pruning"]["target"]["device_table"] == table
    page.get_by_label("How much").select_option("sparsity")
    page.get_by_label("Sparsity", exact=True).fill("0.3")
    estimate.get_by_text("Predicted decode").wait_for(state="detached")
    estimate.get_by_text("Memory by step").wait_for()
    assert "target" not in sent[-1]["pruning"]


def test_what_a_job_will_do_otherwise_is_said(page: Page, jobs: Jobs, model_uri: str) -> None:
    page.goto("/#/new")
    page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
    page.get_by_label("Output").fill(f"{jobs.prefix}/out")
    page.get_by_label("Sparsity", exact=True).fill("0.2")
    page.get_by_label("Layout").select_option("uniform")
    page.get_by_label("Calibration text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Sequences").first.fill("4")
    page.get_by_label("Tokens each").first.fill("32")
    page.get_by_label("Allow degenerate text").check()
    page.get_by_text("Quality and limits").click()
    page.get_by_label("Widths are multiples of").fill("128")
    estimate = page.get_by_role("complementary", name="Estimate")
    estimate.get_by_text("33.3%, 20.0% asked for").wait_for()
    assert estimate.get_by_text("0.2 was asked for, 0.3333").is_visible()
    page.get_by_role("button", name=SUBMIT).click()
    page.get_by_role("heading", name="model, 20% sparsity").wait_for()
    record = jobs.services.ledger.get(page.url.rpartition("/")[2])
    assert record is not None
    assert record.spec["calibration"]["allow_degenerate"] is True


def test_a_job_says_how_long_it_takes_and_when_it_starts(
    page: Page, jobs: Jobs, model_uri: str
) -> None:
    ledger = jobs.services.ledger
    ledger.note_worker("one:1", {"pool": "small", "rates": RATES.model_dump_json()})
    fill_form(page, model_uri, f"{jobs.prefix}/out")
    page.get_by_label("Allow degenerate text").check()
    times = page.locator(".times")
    times.get_by_text(re.compile(r"^About (up to )?\d.* seconds? on small$")).wait_for()
    times.get_by_text("Starts at once.").wait_for()
    before = times.inner_text()
    # Live with the form: ten thousand steps of training take longer.
    page.get_by_text("Quality and limits").click()
    page.get_by_label("Distillation steps").fill("10000")
    times.get_by_text(re.compile(r"(minutes|hours|days) on small")).wait_for()
    assert times.inner_text() != before
    page.get_by_label("Distillation steps").fill("")
    page.get_by_role("button", name=SUBMIT).click()
    page.get_by_text("Predicted on small").wait_for()
    page.get_by_text("next in the queue · 1 worker is there · Starts at once.").wait_for()
    ledger.forget_worker("one:1")


def test_a_missing_text_is_said_at_its_field(page: Page, jobs: Jobs, model_uri: str) -> None:
    page.goto("/#/new")
    page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
    page.get_by_label("Output").fill(f"{jobs.prefix}/out")
    page.get_by_role("button", name=SUBMIT).click()
    field = page.locator('[data-pointer="/calibration/uri"]')
    field.get_by_text("uri is missing").wait_for()
    page.get_by_label("Text", exact=True).select_option("self")
    page.get_by_text("Memory by step").wait_for()
    assert field.is_hidden()


def test_a_job_is_followed_and_controlled(page: Page, jobs: Jobs) -> None:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    jobs.log(job_id, "layer 0: 1536 -> 1100 channels")
    page.goto(f"/#/jobs/{job_id}")
    step = page.locator("[aria-current=step]")
    step.filter(has_text="calibrating").wait_for()
    jobs.progress(job_id, Phase.SOLVING, 0.5)
    step.filter(has_text="solving").wait_for()
    page.get_by_role("status").get_by_text("solving, 50%", exact=True).wait_for()
    assert page.get_by_role("progressbar").evaluate("node => node.value") == 0.5
    page.get_by_text("Log", exact=True).click()
    page.get_by_text("1536 -> 1100").wait_for()

    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_role("button", name="Resume").press("Enter")
    page.get_by_role("button", name="Pause").wait_for()
    page.get_by_role("button", name="Cancel job").press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.press("Escape")
    dialog.wait_for(state="detached")
    assert state_of(jobs, job_id) == JobState.RUNNING
    page.get_by_role("button", name="Cancel job").press("Enter")
    dialog.get_by_role("button", name="Cancel job").press("Enter")
    page.get_by_text("cancelling", exact=True).first.wait_for()
    jobs.services.ledger.release(job_id, jobs.claims[job_id].fence)
    jobs.commit(job_id)
    page.get_by_role("button", name="Retry").press("Enter")
    page.get_by_role("button", name="Pause").wait_for()
    assert state_of(jobs, job_id) == JobState.QUEUED


def test_events_go_on_after_a_break(page: Page, jobs: Jobs, app: FastAPI) -> None:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    page.goto(f"/#/jobs/{job_id}")
    events = page.get_by_label("Events, newest first")
    events.get_by_text("calibrating").wait_for()
    page.context.set_offline(True)
    page.context.set_offline(False)
    jobs.progress(job_id, Phase.SOLVING, 0.5)
    events.get_by_text("solving 15 of 30").wait_for()
    # From where it broke off: nothing twice.
    assert events.get_by_text("running, attempt 1").count() == 1


def test_a_stream_that_broke_off_before_the_end(page: Page, jobs: Jobs) -> None:
    """As when a server stops: by the time the page looks, the job is over; the rest is read too."""
    job_id = jobs.failed("broken")
    first = httpx.URL(page.url).join(f"/v1/pruning-jobs/{job_id}/events")
    cut: list[str] = []

    def cut_off(route: Route) -> None:
        whole = route.fetch().text()
        cut.append(whole[: whole.index("\n\n") + 2])
        route.fulfill(status=200, content_type="text/event-stream", body=cut[0])

    page.route(str(first), cut_off, times=1)
    page.goto(f"/#/jobs/{job_id}")
    events = page.get_by_label("Events, newest first")
    events.get_by_text("failed – broken").wait_for()
    assert len(cut) == 1
    assert events.get_by_text("queued").count() == 1


def test_a_job_in_its_second_run(page: Page, jobs: Jobs) -> None:
    """What its first run came to is history: told, but not shown as how the job stands."""
    job_id = jobs.failed("broken")
    services = jobs.services
    record = services.ledger.get(job_id)
    assert record is not None
    assert retry(services.journal, services.ledger, record)
    claim = claim_job(services.ledger, job_id, "worker", 600)
    assert isinstance(claim, Claim)
    jobs.claims[job_id] = claim
    jobs.progress(job_id, Phase.CALIBRATING, 0.2)
    page.goto(f"/#/jobs/{job_id}")
    page.locator("[aria-current=step]").filter(has_text="calibrating").wait_for()
    events = page.get_by_label("Events, newest first")
    events.get_by_text("failed – broken").wait_for()
    events.get_by_text("calibrating 6 of 30").wait_for()
    phases = page.get_by_label("Phases").locator("li.done")
    assert phases.all_inner_texts() == ["inspecting"]
    jobs.progress(job_id, Phase.COMMITTING, 1.0)
    jobs.finish(job_id, made_report(33.4, 0.3))
    page.get_by_role("img", name="FFN channels kept of each of 30 layers").wait_for()
    events.get_by_text("succeeded").wait_for()


def test_layers_are_shown_as_they_become_known(page: Page, jobs: Jobs) -> None:
    job_id = jobs.running(Phase.ALLOCATING, 0.2)
    jobs.layers(job_id, index=[0, 1, 2], width_before=[100] * 3, query_heads_before=[8] * 3)
    page.goto(f"/#/jobs/{job_id}")
    widths = page.get_by_role("figure").filter(has_text="FFN channels kept")
    energies = page.get_by_role("figure").filter(has_text="Energy, by layer")
    heads = page.get_by_role("figure").filter(has_text="Query heads kept")
    page.get_by_text("allocating 6 of 30 · 20%").wait_for()
    assert widths.is_hidden()

    jobs.layers(job_id, index=[1, 2], energy=[0.5, 0.25])
    energies.get_by_role("img", name="Energy of 2 of 3 layers; from 0.25 to 0.5").wait_for()
    energies.get_by_text("2 of 3 layers are measured so far").wait_for()
    assert energies.locator("circle.violet").count() == 2
    assert widths.is_hidden()

    more = {"width_before": [100] * 3, "query_heads_before": [8] * 3}
    jobs.layers(job_id, index=[0, 1, 2], energy=[1.0, 0.5, 0.25], width_after=[90, 70, 50], **more)
    widths.get_by_text("210 of 300 stay. 0 of 3 layers are solved so far").wait_for()
    assert energies.get_by_text("so far").count() == 0
    assert widths.locator("rect.planned").count() == 3
    assert heads.is_hidden()
    widths.get_by_text("As a table").click()

    # A further round: the newest widths count.
    jobs.layers(job_id, index=[0, 1, 2], width_after=[80, 80, 50], query_heads_after=[8, 7, 7])
    heads.get_by_text("22 of 24 stay.").wait_for()
    jobs.layers(job_id, index=[1], reconstruction_error=[0.0125])
    widths.get_by_text("1 of 3 layers are solved so far").wait_for()
    assert widths.locator("rect.accent").count() == widths.locator("rect.planned").count() - 1 == 1
    row = widths.get_by_role("row").nth(2)  # the table is still open
    assert row.inner_text().split("\t") == ["1", "80 / 100", "7 / 8", "0.5", "–", "0.0125"]
    assert state_of(jobs, job_id) == JobState.RUNNING
    assert page.get_by_label("Events, newest first").get_by_text("widths of 3 layers").count() == 2

    # Whoever comes later sees the same; the report takes its place.
    page.reload()
    widths.get_by_text("1 of 3 layers are solved so far").wait_for()
    jobs.progress(job_id, Phase.COMMITTING, 1.0)
    jobs.finish(job_id, made_report(33.4, 0.3))
    page.get_by_role("img", name="FFN channels kept of each of 30 layers").wait_for()
    page.get_by_text("so far").first.wait_for(state="hidden")
    assert widths.filter(visible=True).count() == 1


def test_experts_of_layers_are_shown_as_they_become_known(page: Page, jobs: Jobs) -> None:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    jobs.layers(job_id, index=[1, 2], experts_before=[8, 8])
    page.goto(f"/#/jobs/{job_id}")
    experts = page.get_by_role("figure").filter(has_text="Experts kept, by layer")
    page.get_by_text("calibrating 6 of 30 · 20%").wait_for()
    assert experts.is_hidden()
    jobs.layers(job_id, index=[1, 2], experts_after=[6, 6])
    experts.get_by_text("12 of 16 stay.").wait_for()
    experts.get_by_role("img", name="Experts kept of 2 of 3 layers; from 6 to 6").wait_for()
    jobs.layers(job_id, index=[2], kl=[0.125])
    experts.get_by_text("diverges from the dense one by 0.125 nats per token").wait_for()
    assert page.get_by_role("figure").filter(visible=True).count() == 1
    events = page.get_by_label("Events, newest first")
    assert events.get_by_text("experts of 2 layers").count() == 1
    assert events.get_by_text("divergence 0.125 nats").count() == 1


def test_a_new_run_says_anew_what_is_known_of_layers(page: Page, jobs: Jobs) -> None:
    job_id = jobs.running()
    jobs.allocated(job_id)
    page.goto(f"/#/jobs/{job_id}")
    figure = page.get_by_role("figure").filter(has_text="FFN channels kept")
    figure.wait_for()
    page.get_by_role("button", name="Cancel job").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel job").click()
    page.get_by_text("cancelling", exact=True).first.wait_for()
    jobs.services.ledger.release(job_id, jobs.claims[job_id].fence)
    jobs.commit(job_id)
    page.get_by_role("button", name="Retry").wait_for()
    assert figure.is_visible()  # what it had come to
    page.get_by_role("button", name="Retry").click()
    figure.wait_for(state="hidden")


def test_events_of_kinds_that_the_page_does_not_know(page: Page, jobs: Jobs) -> None:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    ledger = jobs.services.ledger
    assert isinstance(ledger, Ledger)
    fields = ("at", "1", "type", "novelty", "data", '{"state": "odd"}')
    client: Any = ledger._client
    client.execute_command("XADD", ledger._key("job", job_id, "events"), "*", *fields)
    page.goto(f"/#/jobs/{job_id}")
    events = page.get_by_label("Events, newest first")
    jobs.progress(job_id, Phase.SOLVING, 0.5)
    events.get_by_text("solving 15 of 30").wait_for()
    assert events.get_by_text("odd").count() == 0


def test_workers_at_most(page: Page, jobs: Jobs, model_uri: str) -> None:
    fill_form(page, model_uri, f"{jobs.prefix}/out")
    page.get_by_text("Running", exact=True).click()
    workers = page.get_by_label("Workers at most")
    workers.fill("100")
    field = page.locator('[data-pointer="/runtime/max_workers"]')
    field.get_by_text("It must be at most 64").wait_for()
    assert workers.get_attribute("aria-invalid") == "true"
    assert "the result is the same" in (field.locator(".hint").text_content() or "")
    workers.fill("4")
    page.get_by_text("Memory by step").wait_for()
    page.get_by_role("button", name=SUBMIT).click()
    page.get_by_role("heading", name="model, 30% sparsity").wait_for()
    job_id = page.url.rpartition("/")[2]
    record = jobs.services.ledger.get(job_id)
    assert record is not None
    assert record.spec["runtime"]["max_workers"] == record.max_workers == 4
    page.goto(f"/#/new?from={job_id}")
    page.get_by_text("Running", exact=True).click()
    assert page.get_by_label("Workers at most").input_value() == "4"


def test_tasks_are_asked_for(page: Page, jobs: Jobs, model_uri: str) -> None:
    """A service that downloads no data says so at the field; the fields after it need tasks."""
    page.goto("/#/new")
    page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
    page.get_by_label("Output").fill(f"{jobs.prefix}/out")
    page.get_by_label("Calibration text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Evaluation text").fill(f"{model_uri}/text.txt")
    for section, sequences in (("calibration", "samples"), ("evaluation", "sequences")):
        page.locator(f'[data-pointer="/{section}/{sequences}"] input').fill("4")
        page.locator(f'[data-pointer="/{section}/sequence_length"] input').fill("32")
    tasks = page.get_by_label("Tasks", exact=True)
    tasks.fill("piqa, lambada_openai")
    page.get_by_label("Documents of each task").fill("50")
    field = page.locator('[data-pointer="/evaluation/tasks"]')
    field.get_by_text("come from a hub").wait_for()
    tasks.fill("")
    page.get_by_text("Memory by step").wait_for()
    assert not field.locator(".field-error").text_content()


def test_a_job_can_be_sent_again(page: Page, jobs: Jobs) -> None:
    """What is shown is the job, in every form; a label cannot end the string of Python."""
    job_id = jobs.succeeded(note="it's ''' quoted")
    page.goto(f"/#/jobs/{job_id}")
    page.get_by_text("Send this job again").click()
    shown = page.get_by_label("The job", exact=True)
    spec = JobSpec.model_validate_json(shown.text_content() or "")
    record = jobs.services.ledger.get(job_id)
    assert record is not None
    assert spec == JobSpec.model_validate(record.spec)
    form = page.get_by_label("Form", exact=True)
    for name, word in (("curl", "Authorization"), ("Command", "strucprune jobs submit --spec -")):
        form.select_option(name)
        assert word in (shown.text_content() or "")
        assert page.url.split("/#")[0] in (shown.text_content() or "")
    form.select_option("Python")
    tree = ast.parse(shown.text_content() or "")
    (text,) = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and "uri_prefix" in str(node.value)
    ]
    assert JobSpec.model_validate_json(str(text)) == spec
    page.get_by_role("button", name="Copy: the job").click()
    page.get_by_role("status").get_by_text("ed").first.wait_for()


def test_a_job_is_deleted(page: Page, jobs: Jobs) -> None:
    job_id = jobs.succeeded()
    page.goto(f"/#/jobs/{job_id}")
    page.get_by_role("button", name="Delete").click()
    page.get_by_label("Also delete the files").check()
    with page.expect_request("**/v1/pruning-jobs/*?outputs=true") as request:
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    assert request.value.method == "DELETE"
    page.get_by_text("There are no jobs yet.").wait_for()
    assert jobs.services.ledger.get(job_id) is None


def test_a_result(page: Page, jobs: Jobs) -> None:
    page.goto(f"/#/jobs/{jobs.succeeded(33.43)}")
    page.get_by_role("img", name="FFN channels kept of each of 30 layers").wait_for()
    page.get_by_role("img", name="Energy of each of 30 layers").wait_for()
    assert page.get_by_text("was 23.49 (× 1.42)").is_visible()
    assert page.get_by_text("34 MB in gguf_q8_0, perplexity 33.93").is_visible()
    link = page.get_by_role("link", name="model.safetensors").get_attribute("href")
    assert link is not None
    assert httpx.get(link).content == WEIGHTS  # without the key
    page.get_by_role("link", name="Use as template").click()
    page.get_by_role("heading", name="New job").wait_for()
    assert page.get_by_label("Calibration text").input_value() == f"{jobs.prefix}/text.txt"
    assert page.get_by_label("Output").input_value() == ""


def test_what_to_do_with_a_result_comes_first(page: Page, jobs: Jobs) -> None:
    loading = [Loading(runtime="vLLM", note="a plugin", language="sh", example="vllm serve .")]
    report = made_report(33.43, 0.3).model_copy(update={"loading": loading})
    job_id = jobs.succeeded(report=report)
    page.goto(f"/#/jobs/{job_id}")
    page.get_by_role("heading", name="Load in vLLM").wait_for()
    heading = page.locator("main h2:visible").first
    assert heading.inner_text() == "Use the result"
    command = page.get_by_label("Download all files", exact=True).text_content()
    assert f"strucprune jobs download {job_id} --to {job_id}" in (command or "")
    assert page.get_by_label("Load in vLLM", exact=True).text_content() == "vllm serve ."
    page.get_by_role("button", name="Copy: Load in vLLM").click()
    page.get_by_role("status").get_by_text("ed").first.wait_for()


def test_several_sizes_are_compared_on_their_page(page: Page, jobs: Jobs) -> None:
    page.goto(f"/#/jobs/{jobs.succeeded(report=made_sizes())}")
    page.get_by_role("heading", name="Perplexity over size").wait_for()
    page.get_by_role("img", name="speed while writing, dense = 1 against checkpoint").wait_for()
    tasks = page.get_by_role("region", name="Tasks").inner_text()
    assert "piqa, acc" in tasks
    assert tasks.count("0.66 ± 0.047") == 4
    assert page.get_by_role("region", name="Speed").get_by_text("× 1.5").count() == 3
    assert page.get_by_text(" there was one who").count() == 3
    assert page.get_by_text("not published: perplexity went too far").first.is_visible()


def test_sizes_are_added_to_a_finished_job(page: Page, jobs: Jobs) -> None:
    job_id = jobs.succeeded(report=made_sizes())
    page.goto(f"/#/jobs/{job_id}")
    page.get_by_role("link", name="Add sizes").click()
    page.get_by_role("heading", name="Add sizes").wait_for()
    sizes = page.get_by_label("Several sizes")
    assert sizes.input_value() == ""
    with page.expect_request("**/validate") as asked:
        sizes.fill("0.4")
    body = json.loads(asked.value.post_data or "")
    assert (body["extends"], body["pruning"]["sizes"]) == (job_id, [0.4])
    assert "sparsity" not in body["pruning"]
    assert page.get_by_role("button", name="Leave out extends").is_visible()


def test_the_phase_that_failed_is_marked(page: Page, jobs: Jobs) -> None:
    page.goto(f"/#/jobs/{jobs.failed('broken')}")
    phases = page.get_by_label("Phases")
    phases.get_by_text("solving: failed").wait_for()
    done = phases.locator("li.done").all_inner_texts()
    assert done == ["inspecting", "calibrating", "allocating"]


def test_samples_and_speed_of_a_result(page: Page, jobs: Jobs) -> None:
    hostile = "<img src=x onerror=alert(1)>\x1b\u202e"
    dense = Continuation(token=" one", rest=hostile, tokens=5, ended=False)
    pruned = Continuation(token=" two", rest="", tokens=3, ended=True)
    sample = SampleReport(
        prompt="A prompt\nof two lines", same=" both", same_tokens=2, dense=dense, pruned=pruned
    )
    report = made_report(33.43, 0.3).model_copy(
        update={
            "samples": [sample],
            "speed": made_speed(),
            "predicted_speed": made_prediction(),
        }
    )
    page.goto(f"/#/jobs/{jobs.succeeded(33.43, report=report)}")
    page.get_by_role("heading", name="Samples").wait_for()
    assert page.locator("mark").all_inner_texts() == [" one", " two"]
    written = page.locator(".written").all_inner_texts()
    assert written[0] == "A prompt\nof two lines"
    assert written[1] == r" both one<img src=x onerror=alert(1)>\u{1b}\u{202e}"
    assert page.locator("img[src=x]").count() == 0
    assert page.get_by_text("3 tokens, ended").is_visible()
    table = page.get_by_role("region", name="Speed")
    assert "20 (19 to 22)" in table.inner_text()
    assert "× 1.5" in table.inner_text()
    assert page.get_by_text("transformers 5.1, bfloat16, on a device with 2 threads").is_visible()
    predicted = page.locator("section", has=page.get_by_role("heading", name="Predicted speed"))
    lines = predicted.last.inner_text().split("\n")
    shown = {name: lines[place + 1] for place, name in enumerate(lines[:-1])}
    assert shown["Asked for"] == "decode × 1.25"
    assert shown["Predicted decode"] == "× 1.3, 65 ms → 50 ms"
    assert shown["Measured in this job"] == f"× {made_speed().decode_gain:g}"


def test_samples_and_speed_are_asked_for(page: Page, jobs: Jobs, model_uri: str) -> None:
    fill_form(page, model_uri, f"{jobs.prefix}/out")
    page.get_by_label("Evaluation text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Sequences").nth(1).fill("2")
    page.get_by_label("Tokens each").nth(1).fill("32")
    page.get_by_label("Samples side by side").check()
    page.get_by_label("Measure speed").check()
    page.get_by_label("Prompts").fill("Once upon\n\na time")
    page.get_by_role("complementary", name="Estimate").get_by_text("Memory by step").wait_for()
    page.get_by_role("button", name=SUBMIT).click()
    page.get_by_role("heading", name="model, 30% sparsity").wait_for()
    record = jobs.services.ledger.get(page.url.rpartition("/")[2])
    assert record is not None
    judged = record.spec["evaluation"]
    assert (judged["samples"], judged["speed"]) == (True, True)
    assert judged["prompts"] == ["Once upon", "a time"]


def test_a_comparison(page: Page, jobs: Jobs) -> None:
    jobs.succeeded(28.7, sparsity=0.2)
    jobs.succeeded(49.7, sparsity=0.5)
    jobs.running()
    page.reload()
    page.get_by_text("solving").wait_for()
    boxes = page.get_by_role("checkbox", disabled=False)
    assert boxes.count() == 2
    for box in boxes.all():
        box.press("Space")
    page.get_by_role("link", name="Compare 2 jobs").press("Enter")
    plot = page.get_by_role("img", name="perplexity against sparsity reached")
    plot.wait_for()
    said = plot.get_attribute("aria-label") or ""
    assert "sparsity 20.0%, perplexity 28.7" in said
    assert "sparsity 50.0%, perplexity 49.7" in said
    assert page.get_by_role("row", name="Perplexity").inner_text().split("\t")[1:] == [
        "49.7 (× 2.12)",
        "28.7 (× 1.22)",
    ]
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as CSV").click()
    with saved.value.path().open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["perplexity"]) for row in rows] == [49.7, 28.7]
    assert float(rows[0]["perplexity_ratio"]) > 2
    assert rows[0]["name"] == "smollm2-135m, 50% sparsity"


def test_usage(page: Page, browser: Browser, url: str, keys: dict[str, str], jobs: Jobs) -> None:
    job_id = jobs.running()
    jobs.queued()
    page.get_by_role("link", name="Usage").click()
    quota = page.get_by_role("region", name="Quota")
    assert "Jobs that have not ended\t2\tno limit" in quota.inner_text()
    page.get_by_text("A key with the scope admin").wait_for()
    host = {"host": "one", "pool": "h200", "version": "1", "device": "cuda", "threads": "8"}
    jobs.services.ledger.note_worker("one:1", {**host, "job_id": job_id, "part": "lead"})
    with watched_page(browser, url) as operators:
        operators.goto("/")
        operators.get_by_label("API key").fill(keys["operator"])
        operators.get_by_label("API key").press("Enter")
        operators.get_by_role("link", name="Usage").click()
        shown = operators.get_by_role("region", name="Workers")
        shown.get_by_role("link", name=job_id).wait_for()
        assert "cuda, 8 threads" in shown.inner_text()


def test_a_waiting_job_says_where_it_stands(page: Page, jobs: Jobs) -> None:
    jobs.queued()
    page.goto(f"/#/jobs/{jobs.queued()}")
    page.get_by_text("number 2 in the queue, about · 0 workers are there").wait_for()


def test_a_key_that_may_only_read(
    browser: Browser, url: str, keys: dict[str, str], jobs: Jobs
) -> None:
    job_id = jobs.running()
    with watched_page(browser, url) as page:
        enter(page, keys["acme-reader"], f"/jobs/{job_id}")
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("alert").filter(has_text="jobs:write").wait_for()
        assert state_of(jobs, job_id) == JobState.RUNNING


def test_progress_leaves_the_rest_of_the_page_alone(page: Page, jobs: Jobs) -> None:
    job_id = jobs.running(Phase.CALIBRATING, 0.2)
    page.goto(f"/#/jobs/{job_id}")
    fact = page.get_by_text(job_id, exact=True)
    page.get_by_text("calibrating 6 of 30 · 20%").wait_for()
    fact.evaluate("node => getSelection().selectAllChildren(node)")
    jobs.progress(job_id, Phase.SOLVING, 0.5)
    page.get_by_text("solving 15 of 30 · 50%").wait_for()
    assert page.evaluate("getSelection().toString()") == job_id


def test_the_description_of_the_api(browser: Browser, url: str, keys: dict[str, str]) -> None:
    """Works under its policy, of which any violation fails this test; a request can be tried."""
    with watched_page(browser, url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto("/docs")
        page.get_by_role("button", name="Authorize").first.click()
        page.locator(".auth-container input").fill(keys["acme"])
        page.locator(".auth-btn-wrapper .authorize").click()
        page.locator(".auth-btn-wrapper .btn-done").click()
        page.locator("#operations-capabilities-get_capabilities_v1_capabilities_get").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        page.get_by_text('"architectures": [').first.wait_for()
        assert all(address.startswith((url, "data:", "blob:")) for address in asked)
