"""The templates: everything escaped, nothing undefined, and all of them in the wheel."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
from jinja2 import StrictUndefined, UndefinedError

from strucprune_core.report import html
from strucprune_core.report.document import (
    Continuation,
    DistillationReport,
    ExportReport,
    FileEntry,
    RecoveryReport,
    RoundReport,
    SampleReport,
)
from strucprune_core.report.html import render_html
from strucprune_core.report.html.render import environment
from tests.support.report_page import check_page
from tests.support.reports import HOSTILE, make_layers, make_report

ROOT = Path(__file__).parents[3]
TEMPLATES = Path(html.__file__).parent / "templates"


def test_jinja_escapes_everywhere_and_refuses_unknown_names() -> None:
    assert environment().autoescape is True
    assert environment().undefined is StrictUndefined
    for path in TEMPLATES.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bsafe\b|autoescape|forceescape", text), path.name
    with pytest.raises(UndefinedError):
        environment().get_template("page.html").render(report=make_report())


def test_optional_parts_are_escaped() -> None:
    report = make_report(3)
    check = report.verification.model_copy(update={"reference": HOSTILE})
    export = ExportReport(name="gguf", folder="gguf", bytes=1, verification=check)
    own = Continuation.model_construct(token=HOSTILE, rest=HOSTILE, tokens=2, ended=True)
    sample = SampleReport(prompt="x", same="x", same_tokens=1, dense=own, pruned=own)
    sample = sample.model_copy(update={"prompt": HOSTILE, "same": HOSTILE})
    recovery = RecoveryReport(status=HOSTILE, error_before=1.0, error_after=None)
    page = render_html(
        report.model_copy(
            update={
                "layers": [row.model_copy(update={"recovery": recovery}) for row in report.layers],
                "distillation": DistillationReport(
                    status=HOSTILE, steps=2, kl_before=1.0, kl_after=None, losses=[], seconds=1.0
                ),
                "samples": [sample],
                "exports": [export.model_copy(update={"name": HOSTILE, "folder": HOSTILE})],
            }
        )
    )
    parsed = check_page(page)
    assert "<script" not in page
    # Three layers, the distillation, an export's name, folder and reference, a prompt, and of each
    # model what both write, the marked token and the rest.
    assert parsed.text.count("<script>alert(1)</script>") == 3 + 1 + 3 + 1 + 2 * 3


def test_a_template_in_a_name_stays_text() -> None:
    trick = "{{ 7 * 7 }}{% include 'page.html' %}{{ report.spec }}"
    report = make_report(
        1,
        warnings=[trick],
        spec={"labels": {trick: trick}},
        files=[FileEntry(name=trick, bytes=1, sha256="00")],
    )
    page = render_html(report)
    assert check_page(page).text.count(trick) == 4
    assert ">49<" not in page


def test_a_job_is_called_by_its_name() -> None:
    page = render_html(make_report(1, spec={"name": "Nightly"}))
    assert "<title>Nightly · StrucPrune report</title>" in page
    assert "StrucPrune report: Nightly" in check_page(page).text
    assert "StrucPrune report:" not in render_html(make_report(1, spec={"name": None}))


def test_names_that_break_are_escaped_and_break() -> None:
    page = render_html(make_report(1, spec={"a.<b>_c": "."}))
    assert "<dt>a.<wbr>&lt;b&gt;_<wbr>c</dt>" in page


def test_the_style_sheet_is_in_the_page_as_it_is() -> None:
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8").strip()
    assert style in render_html(make_report(1))


def test_the_same_report_gives_the_same_page() -> None:
    first = render_html(make_report())
    environment.cache_clear()
    assert render_html(make_report()) == first


def test_the_first_sentence_says_what_the_job_did() -> None:
    report = make_report()
    assert (
        "StrucPrune removed 8,305 of 46,080 FFN channels: 18.0% of the prunable parameters "
        "(requested: 20.0%)." in check_page(render_html(report)).text
    )
    gone = report.sparsity.model_copy(
        update={"channels_removed": 0, "query_heads_removed": 90, "kv_heads_removed": 30}
    )
    text = check_page(render_html(make_report(sparsity=gone))).text
    assert "removed 90 of 270 query heads, 30 of 90 key-value heads: 18.0%" in text
    nothing = gone.model_copy(
        update={"query_heads_removed": 0, "kv_heads_removed": 0, "reached": 0}
    )
    assert "removed nothing: 0.0%" in check_page(render_html(make_report(sparsity=nothing))).text


def test_sections_stand_in_the_order_of_questions() -> None:
    page = render_html(make_report())
    sections = re.findall(r'<section[^>]* aria-labelledby="(\w+)"', page)
    assert sections == ["warnings", "quality", "layers", "resources", "provenance", "files"]


@pytest.mark.parametrize("unknown", [[1], [0, 1, 2, 3, 4]])
def test_an_error_that_is_not_known_says_so(unknown: list[int]) -> None:
    layers = make_layers(5)
    for index in unknown:
        layers[index] = layers[index].model_copy(update={"reconstruction_error": None})
    page = render_html(make_report(5).model_copy(update={"layers": layers}))
    text = check_page(page).text
    assert text.count("Layer 1: reconstruction error unknown") == 1
    assert f"Unknown in {len(unknown)} of 5 layers." in text
    assert page.count('<td class="num">unknown</td>') == len(unknown)
    assert page.count('<circle class="dot rose"') == 5 - len(unknown)
    assert "Unknown in" not in render_html(make_report(5))


def test_warnings_stand_before_the_figures_and_many_are_folded() -> None:
    warnings = [f"warning number {place}" for place in range(20)]
    page = render_html(make_report(warnings=warnings))
    text = check_page(page).text
    assert "20 warnings" in text
    assert all(warning in text for warning in warnings)
    assert page.index("number 5<") < page.index("<summary>14 more") < page.index("number 6<")
    assert page.index("number 19") < page.index("Headline figures")
    assert "more</summary>" not in render_html(make_report(warnings=warnings[:6]))


def test_optional_figures_are_shown_where_they_are() -> None:
    rounds = [
        RoundReport(
            price=None, temperature=0.5, predicted_damage=0.5, widths=[9], kl=None, used=used
        )
        for used in (True, False)
    ]
    recovery = RecoveryReport(status="accepted", error_before=0.5, error_after=0.25)
    layers = [
        row.model_copy(update={"recovery": recovery, "query_heads_after": 6, "kv_heads_after": 2})
        for row in make_layers(2)
    ]
    plain, page = (
        render_html(make_report(2)),
        render_html(make_report(2, rounds=rounds).model_copy(update={"layers": layers})),
    )
    for text in ("Recovery", "Heads / KV", "6 / 2", "0.5000 → 0.2500", "Rounds of the price"):
        assert text in page
        assert text not in plain


def test_the_wheel_has_every_template() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["strucprune_core"]
    files = [path.relative_to(ROOT / "strucprune_core") for path in TEMPLATES.rglob("*")]
    assert len(files) > 5
    for file in files:
        assert any(fnmatch.fnmatchcase(str(file), pattern) for pattern in patterns), file
