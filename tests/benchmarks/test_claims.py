"""What the library says of runtimes, against benchmarks/results/runtimes.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import get_args

import pytest
from pydantic import TypeAdapter

from benchmarks.runtimes.cases import CASES, Runtime
from benchmarks.runtimes.commands import PROGRAMS, Command, failures
from benchmarks.runtimes.table import Row
from benchmarks.runtimes.verdict import problems, proved
from embedded.stack import ROOT
from strucprune_core.export.runtimes import RUNTIMES, LoadableForm
from strucprune_core.models.generic.architectures import generic_model_types


@cache
def recorded() -> list[Row]:
    text = (ROOT / "benchmarks/results/runtimes.json").read_text(encoding="utf-8")
    return TypeAdapter(list[Row]).validate_python(json.loads(text)["rows"])


def said() -> Iterator[tuple[str, LoadableForm]]:
    return ((runtime.name, form) for runtime in RUNTIMES for form in runtime.loads)


FORMS = [
    pytest.param(*each, id=f"{each[0]}-{each[1].form}-{each[1].families[0]}") for each in said()
]


@pytest.mark.parametrize(("runtime", "form"), FORMS)
def test_what_is_said_to_load_was_loaded(runtime: str, form: LoadableForm) -> None:
    """Of architectures that are not written out, `tests.coverage` loaded each in transformers."""
    generic = set(generic_model_types())
    loaded = proved(recorded(), runtime, form.form)
    tried = set(form.families) - set(form.not_tried)
    assert tried - generic <= loaded
    assert not loaded & set(form.not_tried), "these were loaded, and are said not to be tried"
    if generic & tried:
        assert runtime == "transformers"
        assert tried == generic
        assert form.form == "uniform" or loaded & generic


@pytest.mark.parametrize(("runtime", "form"), FORMS)
def test_what_is_said_to_load_without_blocks_was_loaded(runtime: str, form: LoadableForm) -> None:
    loaded = proved(recorded(), runtime, form.form, blocks=True)
    assert set(form.without_blocks) == loaded & set(form.families)


@pytest.mark.parametrize(("runtime", "form"), FORMS)
def test_what_is_said_to_load_with_fewer_heads_was_loaded(runtime: str, form: LoadableForm) -> None:
    loaded = proved(recorded(), runtime, form.form, heads=True)
    assert form.form != "uniform" or set(form.fewer_heads) == loaded & set(form.families)


def test_the_commands_of_model_cards_ran() -> None:
    text = (ROOT / "benchmarks/results/runtimes.json").read_text(encoding="utf-8")
    commands = TypeAdapter(list[Command]).validate_python(json.loads(text)["commands"])
    assert {each.runtime for each in commands} == set(PROGRAMS.values())
    assert failures(commands) == []


def test_nothing_that_was_recorded_contradicts_the_library() -> None:
    assert recorded()
    assert [problem for row in recorded() for problem in problems(row)] == []
    for row in recorded():
        cases = [
            case
            for case in CASES
            if (case.runtime, case.form, case.checkpoint, case.how)
            == (row.runtime, row.form, row.checkpoint, row.how)
        ]
        assert [case.claimed for case in cases] == [row.claimed]


def test_the_earliest_releases_were_tried() -> None:
    releases = [name for name in get_args(Runtime) if name.startswith("transformers ")]
    for runtime, form in said():
        for since, blocks in ((form.since, False), (form.blocks_since, True)):
            if since is None or since == "5":
                continue
            assert f"{runtime} {since}" in releases
            loaded = proved(recorded(), f"{runtime} {since}", form.form, blocks=blocks)
            assert set(form.families) <= loaded
