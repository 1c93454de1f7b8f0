"""The form of a new job in a real Chromium: what it sets, says and mends as people fill it in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.jobs.record import JobRecord
from strucprune_core.spec import JobSpec, field_defaults
from tests.api.browser.conftest import Jobs
from tests.support.browser import fill_form, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SUBMIT = "Submit job"


def field(page: Page, pointer: str) -> Locator:
    return page.locator(f'[data-pointer="{pointer}"]')


def submitted(page: Page, jobs: Jobs) -> JobRecord:
    """The job, once the page has submitted it."""
    page.get_by_role("button", name=SUBMIT).click()
    page.wait_for_url("**/#/jobs/*")
    record = jobs.services.ledger.get(page.url.rpartition("/")[2])
    assert record is not None
    return record


def test_where_it_will_run(page: Page, jobs: Jobs, model_uri: str) -> None:
    """The choice sets layout and exports; who changes them again is told, and offered the way."""
    fill_form(page, model_uri, f"{jobs.prefix}/out")
    where = page.get_by_label("Where will it run?")
    layout, follows = page.get_by_label("Layout"), field(page, "#where")
    follows.get_by_text("loads in transformers and vLLM").wait_for()
    where.select_option("llama.cpp")
    follows.get_by_text("Export gguf is added, which llama.cpp loads as it is, of llama").wait_for()
    assert page.get_by_label("gguf", exact=True).is_checked()
    assert layout.input_value() == ""
    where.select_option("vLLM")
    follows.get_by_text("Layout uniform is set, which vLLM loads as it is; layout per").wait_for()
    assert not page.get_by_label("gguf", exact=True).is_checked()
    where.select_option("MLX")
    assert layout.input_value() == "uniform"
    estimate = page.get_by_role("complementary", name="Estimate")
    mlx = estimate.get_by_role("listitem").filter(has_text="MLX")
    mlx.get_by_text("loads", exact=True).wait_for()

    layout.select_option("per_layer")
    follows.get_by_text("MLX will not load the result").wait_for()
    assert follows.get_by_role("button", name="Set Layout to uniform").is_visible()
    follows.get_by_role("button", name="Add block configs").click()
    mlx.get_by_text("loads", exact=True).wait_for()
    follows.get_by_text("MLX will not").wait_for(state="detached")
    estimate.get_by_role("button", name="Add gguf", exact=True).click()
    estimate.get_by_role("listitem").filter(has_text="llama.cpp").get_by_text(
        "loads", exact=True
    ).wait_for()
    record = submitted(page, jobs)
    assert record.spec["pruning"]["layout"] == "per_layer"
    assert set(record.spec["pruning"]["exports"]) == {"block_configs", "gguf"}


def test_buttons_that_mend(page: Page, jobs: Jobs, model_uri: str) -> None:
    fill_form(page, model_uri, f"{jobs.prefix}/out")
    sparsity = page.get_by_label("Sparsity", exact=True)
    sparsity.fill("30")
    page.get_by_role("button", name="Set Sparsity to 0.3").click()
    assert sparsity.input_value() == "0.3"
    assert sparsity.evaluate("node => node === document.activeElement")
    page.get_by_text("Memory by step").wait_for()

    # Of two fields that do not fit, the other one may be in a folded part.
    page.get_by_label("Layout").select_option("uniform")
    page.get_by_text("Quality and limits").click()
    page.get_by_label("Allocation").select_option("softmax")
    page.get_by_text("Quality and limits").click()
    offer = field(page, "/pruning/layout").get_by_role("button", name="Set Allocation to uniform")
    offer.click()
    page.get_by_text("Memory by step").wait_for()
    allocation = page.get_by_label("Allocation")
    assert allocation.input_value() == "uniform"
    assert allocation.is_visible()
    assert offer.count() == 0

    # What the model alone tells: heads and this export do not go together.
    page.get_by_label("kv groups").check()
    page.get_by_label("block configs").check()
    field(page, "/pruning/exports").get_by_role("button", name="Leave out block configs").click()
    page.get_by_text("Memory by step").wait_for()
    record = submitted(page, jobs)
    assert record.spec["pruning"]["exports"] == []
    assert record.spec["pruning"]["structures"] == ["ffn_channels", "kv_groups"]


def test_problems_of_storage_show_at_once(page: Page, jobs: Jobs, model_uri: str) -> None:
    """Each at its field as soon as that is filled, whatever else is missing or wrong."""
    page.goto("/#/new")
    page.get_by_label("Calibration text").fill(f"{model_uri}/nothing.txt")
    field(page, "/calibration/uri").get_by_text("there is no text").wait_for()
    assert not field(page, "/model/uri").locator(".field-error").text_content()
    page.get_by_label("Output").fill(f"{model_uri}/text.txt/..")
    field(page, "/output/uri_prefix").locator(".field-error:not(:empty)").wait_for()
    page.get_by_label("Output").fill(model_uri)
    field(page, "/output/uri_prefix").get_by_text("already holds").wait_for()
    page.get_by_label("Sparsity", exact=True).fill("much")
    page.get_by_label("Model", exact=True).fill(f"{jobs.prefix}/nowhere")
    field(page, "/model/uri").locator(".field-error:not(:empty)").wait_for()
    page.get_by_label("Evaluation text").fill(f"{jobs.prefix}/nothing.txt")
    field(page, "/evaluation/uri").get_by_text("there is no text").wait_for()
    field(page, "/calibration/uri").get_by_text("there is no text").wait_for()
    assert field(page, "/pruning/sparsity").get_by_text("must be a number").is_visible()

    page.get_by_label("Calibration text").fill(f"{model_uri}/text.txt")
    page.get_by_label("Sequences").first.fill("4")
    page.get_by_label("Tokens each").first.fill("32")
    error = field(page, "/calibration/uri").locator(".field-error:empty")
    error.wait_for(state="attached")
    assert field(page, "/model/uri").locator(".field-error").text_content()


def test_models_are_suggested(page: Page, model_uri: str) -> None:
    page.goto("/#/new")
    model = page.get_by_label("Model", exact=True)
    model.fill(f"{model_uri}/mo")
    suggested = field(page, "/model/uri").locator("datalist option")
    suggested.first.wait_for(state="attached")
    values = suggested.evaluate_all("nodes => nodes.map((node) => node.value)")
    assert values == [f"{model_uri}/model"]
    assert model.evaluate("node => node.list.options.length") == 1
    model.fill(f"{model_uri}/nothing")
    suggested.first.wait_for(state="detached")


# Settings without a field in the form.
FURTHER: dict[str, Any] = {
    "damping": 0.02,
    "min_keep_fraction": 0.2,
    "max_sparsity_by_layer": {"0": 0.1, "3": 0.2},
    "recover": {"steps": 3, "mode": "parallel"},
}


def test_a_template_hides_nothing(page: Page, jobs: Jobs, model_uri: str) -> None:
    origin = jobs.queued(pruning=FURTHER, name="first", team="nlp")
    page.goto(f"/#/new?from={origin}")
    further = page.get_by_role("region", name="Taken over from the template")
    further.get_by_text("pruning.damping").wait_for()
    shown = {text.split("\n")[0] for text in further.get_by_role("listitem").all_inner_texts()}
    assert shown == {
        "pruning.recover.mode",
        "pruning.min_keep_fraction",
        "pruning.max_sparsity_by_layer",
        "pruning.damping",
    }
    for label, value in (("Name", "first"), ("Labels", "team=nlp"), ("Recovery steps", "3")):
        assert page.get_by_label(label, exact=True).input_value() == value
    assert page.get_by_label("Output").input_value() == ""

    further.get_by_role("button", name="Leave out pruning.max_sparsity_by_layer").press("Enter")
    further.get_by_text("max_sparsity_by_layer").wait_for(state="detached")
    page.get_by_text("Quality and limits").click()
    page.get_by_label("Recovery steps").fill("")
    further.get_by_text("recover.mode").wait_for(state="detached")
    page.get_by_label("Recovery steps").fill("2")

    page.get_by_label("Model", exact=True).fill(f"{model_uri}/model")
    page.get_by_label("Output").fill(f"{jobs.prefix}/again")
    for label in ("Calibration text", "Evaluation text"):
        page.get_by_label(label).fill(f"{model_uri}/text.txt")
    for place, tokens in ((0, "4"), (1, "2")):
        page.get_by_label("Sequences").nth(place).fill(tokens)
        page.get_by_label("Tokens each").nth(place).fill("32")
    spec = submitted(page, jobs).spec
    expected = {**FURTHER, "max_sparsity_by_layer": {}}
    expected["recover"] = {"steps": 2, "mode": "parallel"}
    assert {name: spec["pruning"][name] for name in FURTHER} == expected


def test_a_setting_of_a_template_is_mended_by_a_button(
    page: Page, jobs: Jobs, model_uri: str
) -> None:
    origin = jobs.queued(pruning={"allocation": "softmax", "temperature": 2.0})
    page.goto(f"/#/new?from={origin}")
    further = page.get_by_role("region", name="Taken over from the template")
    further.get_by_text("pruning.temperature").wait_for()
    page.get_by_text("Quality and limits").click()
    page.get_by_label("Allocation").select_option("threshold")
    page.get_by_role("button", name="Leave out: pruning.temperature").click()
    further.wait_for(state="hidden")


def test_a_template_of_experts_counts_experts(page: Page, jobs: Jobs) -> None:
    """Its sparsity is empty, not the form's usual one."""
    origin = jobs.queued(sparsity=None, pruning={"structures": ["experts"], "expert_count": 6})
    page.goto(f"/#/new?from={origin}")
    page.get_by_text("Quality and limits").click()
    page.get_by_label("Experts to keep").wait_for()
    assert page.get_by_label("Experts to keep").input_value() == "6"
    assert page.get_by_label("Sparsity", exact=True).input_value() == ""


def test_placeholders_are_the_defaults(page: Page) -> None:
    page.goto("/#/new")
    page.get_by_label("Sequences").first.wait_for()
    defaults = field_defaults(JobSpec)
    for pointer in ("/calibration/samples", "/evaluation/sequence_length", "/pruning/rounds"):
        shown = field(page, pointer).locator("input").get_attribute("placeholder")
        assert shown == str(defaults[pointer[1:].replace("/", ".")])


# Longer than the way through the whole form.
MAX_TABS = 80


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until something has the focus; what has it is to be seen."""
    for _ in range(MAX_TABS):
        page.keyboard.press("Tab")
        if target.count() and target.evaluate("node => node === document.activeElement"):
            assert target.evaluate("node => getComputedStyle(node).outlineStyle") != "none"
            return
    raise AssertionError("the keyboard does not lead there")


def test_a_job_is_submitted_by_the_keyboard_alone(
    browser: Browser, url: str, keys: dict[str, str], jobs: Jobs, model_uri: str
) -> None:
    def write(label: str, text: str, place: int = 0) -> None:
        tab_to(page, page.get_by_label(label, exact=True).nth(place))
        page.keyboard.type(text)

    with watched_page(browser, url) as page:
        page.goto("/")
        page.get_by_label("API key").wait_for()
        page.keyboard.type(keys["acme"])  # The field has the focus.
        page.keyboard.press("Enter")
        page.get_by_text("There are no jobs yet.").wait_for()
        tab_to(page, page.get_by_role("main").get_by_role("link", name="New job"))
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="New job").wait_for()

        where = page.get_by_label("Where will it run?")
        tab_to(page, where)
        page.keyboard.type("MLX")
        assert where.input_value() == "MLX"
        write("Model", f"{model_uri}/nowhere")
        field(page, "/model/uri").locator(".field-error:not(:empty)").wait_for()
        page.keyboard.press("Control+a")
        page.keyboard.type(f"{model_uri}/model")
        write("Output", f"{jobs.prefix}/out")
        write("Name", "By the keyboard")
        tab_to(page, page.get_by_label("kv groups"))
        page.keyboard.press("Space")
        write("Calibration text", f"{model_uri}/text.txt")
        write("Sequences", "4")
        write("Tokens each", "32")
        tab_to(page, page.locator("summary").filter(has_text="Running"))
        page.keyboard.press("Enter")
        write("Workers at most", "100")
        field(page, "/runtime/max_workers").get_by_text("at most 64").wait_for()
        page.keyboard.press("Enter")
        page.get_by_role("button", name=SUBMIT, disabled=False).wait_for()
        workers = page.get_by_label("Workers at most")
        assert workers.evaluate("node => node === document.activeElement")  # The wrong field.
        page.keyboard.press("Control+a")
        page.keyboard.type("2")
        estimate = page.get_by_role("complementary", name="Estimate")
        estimate.get_by_text("Memory by step").wait_for()
        tab_to(page, page.get_by_role("button", name=SUBMIT))
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="By the keyboard").wait_for()
        record = jobs.services.ledger.get(page.url.rpartition("/")[2])
    assert record is not None
    assert record.spec["name"] == "By the keyboard"
    assert record.spec["pruning"]["layout"] == "uniform"
    assert record.spec["pruning"]["structures"] == ["ffn_channels", "kv_groups"]
    assert record.max_workers == 2
