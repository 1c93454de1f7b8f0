"""What the pages list is what there is: settings, routes, options, commands, runtimes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import typer.main
from pydantic import BaseModel, TypeAdapter
from starlette.routing import Mount
from typer.core import TyperGroup

from api.app import create_app
from api.settings import Settings as ApiSettings
from benchmarks import experts
from benchmarks.greedy import table as greed_table
from benchmarks.load import requests_table
from benchmarks.load_turns import turns_table
from benchmarks.runtimes.commands import Command
from benchmarks.runtimes.table import Row, commands_table, markdown, speeds_table
from benchmarks.speed import phases_table
from embedded.stack import ROOT
from strucprune_core.client import StrucPruneClient
from strucprune_core.commands.main import app as command
from strucprune_core.plan.device_table import DeviceTable
from strucprune_core.plan.estimate import Estimate, estimate_job
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.spec import JobSpec
from strucprune_core.storage.open import open_store
from tests.docs import runtimes_table, settings_page
from tests.docs.pages import PAGES, blocks, read, resolve
from tests.support.routes import KINDS
from worker.settings import Settings as WorkerSettings

# A function or class, and the file that a page says it is in: [`prune`](../pipeline.py).
_DEFINITION = re.compile(r"\[`(\w+)`\]\(([^)\s]+\.py)\)")
# Of the embedded stack and of tests, not of a program that people run.
OTHER_VARIABLES = {"STRUCPRUNE_URL", "STRUCPRUNE_API_KEY"}


def settings(**more: Any) -> ApiSettings:
    return ApiSettings(
        redis_url="redis://localhost", state_uri="s3://state/x", key_pepper="0" * 32, **more
    )


def test_the_table_of_settings_is_that_of_the_classes() -> None:
    assert settings_page.page() == settings_page.PAGE.read_text(encoding="utf-8"), (
        "run: python -m tests.docs.settings_page"
    )
    assert settings_page.table().count("\n") > len(ApiSettings.model_fields)


def test_the_settings_that_are_shown_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("docs/settings.md")
    for name, value in re.findall(r"^(\w+)='(.*)'$", block.text, re.MULTILINE):
        monkeypatch.setenv(name, value)
    known = settings()
    assert known.limits.open_jobs == 20
    assert known.limits_of("search").deadline_seconds == 24 * 3600
    assert known.allowed_prefixes["search"] == ("s3://models/", "s3://search-team/")


@pytest.mark.parametrize("page", PAGES)
def test_variables_that_are_named_exist(page: str) -> None:
    named = set(re.findall(r"\bSTRUCPRUNE_[A-Z0-9_]*[A-Z0-9]\b", read(page)))
    fields = {*ApiSettings.model_fields, *WorkerSettings.model_fields}
    known = {settings_page.variable(name) for name in fields}
    assert {name for name in named - known if "_S3_" not in name} <= OTHER_VARIABLES


def test_the_table_of_routes_is_that_of_the_service() -> None:
    listed = set(re.findall(r"`(GET|POST|DELETE) (/[^`]*)`", read("docs/rest.md")))
    paths = create_app(settings()).openapi()["paths"]
    served = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    assert listed == served | {("GET", "/")}


def group() -> TyperGroup:
    found = typer.main.get_command(command)
    assert isinstance(found, TyperGroup)
    return found


def test_what_asks_for_no_key_is_listed() -> None:
    """All routes are in the table, so one that is opened fails here until people are told of it."""
    (row,) = re.findall(r"^\| anybody without a key \|(.*)$", read("SECURITY.md"), re.MULTILINE)
    may, _, _ = row.partition(" | ")
    files = {
        route.path + "/*" for route in create_app(settings()).routes if isinstance(route, Mount)
    }
    open_routes = {
        path.replace("{name}", "*") for (_, path), kind in KINDS.items() if kind == "open"
    }
    assert set(re.findall(r"`([^`]+)`", may)) == open_routes | files


def test_every_option_of_prune_is_listed() -> None:
    _, _, page = read("docs/command.md").partition("## Options of prune")
    table, _, _ = page.partition("\n## ")
    listed = set(re.findall(r"(--[a-z][a-z-]*)", table))
    prune = group().commands["prune"]
    options = {option for each in prune.params for option in each.opts if option.startswith("--")}
    assert options - listed == {"--json"}
    assert listed <= options


def test_every_field_of_a_job_is_described() -> None:
    pages = read("docs/command.md") + read("docs/rest.md")
    # An option is the field with dashes, once for each value of a list.
    words = {word.strip("_") for word in re.findall(r"[a-z_]+", pages.replace("-", "_"))}
    named = {name for name in _fields(JobSpec) if {name, name.removesuffix("s")} & words}
    assert set(_fields(JobSpec)) == named


def _fields(kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield name
        inside = (field.annotation, *get_args(field.annotation))
        for part in inside:
            # A device's table is written by a command, and by no people.
            if isinstance(part, type) and issubclass(part, BaseModel) and part is not DeviceTable:
                yield from _fields(part)


def test_every_command_is_listed() -> None:
    listed = set(re.findall(r"^\| `([\w-]+)[^`]*` \|", read("docs/command.md"), re.MULTILINE))
    assert set(group().commands) <= listed


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page: str) -> None:
    made = set(re.findall(r"(?:^|`)make ([a-z]+)", read(page), re.MULTILINE))
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert made <= set(targets)


def test_the_clients_methods_are_listed() -> None:
    _, _, page = read("docs/python.md").partition("| method |")
    table, _, _ = page.partition("\n\n")
    listed = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row)}
    public = {name for name in dir(StrucPruneClient) if not name.startswith("_")} - {"close"}
    assert public <= listed


def test_the_table_of_what_loads_where_is_the_librarys() -> None:
    assert runtimes_table.table() in read("docs/loading.md"), (
        "run python -m tests.docs.runtimes_table"
    )


def test_the_table_of_runtimes_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/runtimes.json").read_text(encoding="utf-8"))
    rows = TypeAdapter(list[Row]).validate_python(result["rows"])
    commands = TypeAdapter(list[Command]).validate_python(result["commands"])
    for table in (markdown([row for row in rows if not row.tiny]), commands_table(commands)):
        assert table in read("docs/loading.md"), f"docs/loading.md has not this table:\n{table}"


def test_the_table_of_speeds_is_what_was_measured() -> None:
    text = (ROOT / "benchmarks/results/runtimes_speed.json").read_text(encoding="utf-8")
    table = speeds_table(TypeAdapter(list[Row]).validate_python(json.loads(text)["rows"]))
    assert table in read("docs/loading.md"), f"docs/loading.md has not this table:\n{table}"


def test_the_table_of_times_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/speed.json").read_text(encoding="utf-8"))
    table = phases_table(result)
    assert table in read("docs/method.md"), f"docs/method.md has not this table:\n{table}"


def test_the_table_of_load_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/load.json").read_text(encoding="utf-8"))
    for table in (requests_table(result), turns_table(result)):
        assert table in read("docs/operating.md"), f"docs/operating.md has not this table:\n{table}"


def test_the_table_of_greed_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/greedy.json").read_text(encoding="utf-8"))
    table = greed_table(result)
    assert table in read("docs/operating.md"), f"docs/operating.md has not this table:\n{table}"


@pytest.mark.parametrize("page", PAGES)
def test_functions_are_where_the_page_says(page: str) -> None:
    linked = _DEFINITION.findall(read(page))
    assert [(name, file) for name, file in linked if name not in _defined(page, file)] == []
    assert page != "docs/method.md" or len(linked) > 20


def _defined(page: str, target: str) -> set[str]:
    """Names of the functions and classes of the file that a page links to."""
    file, _ = resolve(page, target)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


# First cells of the README's table of results, by the method's name in rivals.json.
RESULTS = {
    "magnitude": "magnitude",
    "block-influence": "whole layers, attention with them (ShortGPT)",
    "wanda-sp": "Wanda-sp",
    "flap": "FLAP (score and bias)",
    "taylor": "Taylor, whole model in memory",
    "taylor-ridge": "the same, then least squares",
    "obs-ridge": "OBS, then least squares, uniform",
    "ours": "StrucPrune",
    "ours-softmax": "StrucPrune, `--allocation softmax`",
    "ours-admm": "StrucPrune, `--solver admm`",
}


def test_the_table_of_results_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/rivals.json").read_text(encoding="utf-8"))
    rows = {(row["method"], row["sparsity"]): row for row in result["rows"]}
    page = read("README.md").replace("**", "")
    for method, first in RESULTS.items():
        found = [rows[method, sparsity]["perplexity"] for sparsity in (0.2, 0.3, 0.5)]
        cost = rows[method, 0.3]
        cells = [
            first,
            *(f"{value:,.0f}" if value > 1000 else f"{value:.2f}" for value in found),
            f"{cost['cpu_seconds']:.0f} s",
            f"{cost['host_peak_bytes'] / 1e6:.0f} MB",
        ]
        assert "| " + " | ".join(cells) + " |" in page


@pytest.mark.real_model
def test_the_share_of_parameters_is_what_is_estimated(smollm2: Path) -> None:
    estimate = _estimate(smollm2, None)
    share = 1 - estimate.parameters_after / estimate.parameters_before
    said = f"Removing 30 % of the FFN channels removes {100 * share:.1f} % of all parameters"
    assert said in read("README.md")


def test_the_table_of_memory_is_what_was_planned() -> None:
    result = json.loads((ROOT / "benchmarks/results/memory_scaling.json").read_text("utf-8"))
    for field, first in [
        ("planned", "**planned peak of StrucPrune, without a limit**"),
        ("resident_layer", "one layer, with its Gram matrix and what the solver makes of it"),
    ]:
        slopes = [_exponent(result["rows"], family, field) for family in ("OPT", "LLaMA")]
        sizes = {row["name"]: f"{row[field] / 1e9:.1f} GB" for row in result["rows"]}
        cells = [f"N^{slope:.2f}" for slope in slopes]
        cells += [sizes["llama-7b"], sizes["llama-3-405b"]]
        if first.startswith("**"):
            cells = [f"**{cell}**" for cell in cells]
        assert "| " + " | ".join([first, *cells]) + " |" in read("docs/method.md")


def _exponent(rows: list[dict[str, Any]], family: str, field: str) -> float:
    """The slope of log(field) over log(parameters), by least squares."""
    own = [row for row in rows if row["family"] == family]
    sizes, peaks = (np.log([row[name] for row in own]) for name in ("parameters", field))
    return float(np.polyfit(sizes, peaks, 1)[0])


@pytest.mark.real_model
def test_the_picture_of_memory_is_of_the_plan(smollm2: Path) -> None:
    drawn = re.findall(r">(\w+)[^<]*</text><rect.*>(\d+) MB<", read("docs/memory.svg"))
    assert len(drawn) == 7
    planned = _planned_bytes(smollm2, None)
    assert {name: int(shown) for name, shown in drawn} == {
        name: round(planned[name] / 1e6) for name, _ in drawn
    }
    assert "20MB: at most 19 MB" in read("docs/memory.svg")
    assert round(max(_planned_bytes(smollm2, 20_000_000).values()) / 1e6) == 19


def _planned_bytes(model: Path, limit: int | None) -> dict[str, int]:
    return _estimate(model, limit).step_bytes


def _estimate(model: Path, limit: int | None) -> Estimate:
    spec = JobSpec.model_validate(
        {
            "model": {"uri": str(model)},
            "output": {"uri_prefix": "not-written"},
            "pruning": {"sparsity": 0.3},
            "calibration": {"uri": "not-read.txt"},
            "evaluation": {"uri": "not-read.txt"},
            "runtime": {"device_memory_bytes": limit},
        }
    )
    return estimate_job(spec, inspect_model(open_store(str(model))))


def test_the_table_of_experts_is_what_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks/results/experts.json").read_text(encoding="utf-8"))
    rows = [experts.Row(**row) for row in result["rows"]]
    assert experts.reaps_agree(rows)
    _, lines = experts.table(rows, result["dense"]["perplexity"]).split("\n\n")
    page = read("docs/experts.md")
    assert lines in page
    assert f"has a perplexity of {result['dense']['perplexity']:.2f}" in page
