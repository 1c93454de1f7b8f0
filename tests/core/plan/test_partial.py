"""What is known of a job that is not complete is checked, each place by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import StrucPruneError
from strucprune_core.plan.partial import PartialJob, examine_places
from strucprune_core.plan.places import named_uris
from strucprune_core.spec import JobSpec
from strucprune_core.storage.open import open_store
from tests.core.jobs.tiny_job import run, tiny_spec


@pytest.fixture
def body(tiny_model: Path, text_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": {"uri": str(tiny_model)},
        "output": {"uri_prefix": str(tmp_path / "out")},
        "pruning": {"sparsity": 0.3},
        "calibration": {"uri": str(text_file), "samples": 4, "sequence_length": 64},
        "evaluation": {"uri": str(text_file), "sequences": 2, "sequence_length": 64},
    }


def issues(body: dict[str, Any]) -> dict[str | None, str]:
    """What is wrong with the parts, by field."""
    found, _ = examine_places(PartialJob.salvaged(body), open_store, task_downloads=False)
    return {issue.field: issue.code for issue in found}


def test_a_whole_job_is_kept_whole(body: dict[str, Any]) -> None:
    job = JobSpec.model_validate(body)
    parts = PartialJob.salvaged(body)
    assert parts == PartialJob.of(job)
    assert named_uris(parts) == named_uris(job)
    found, model = examine_places(parts, open_store)
    assert found == []
    assert model is not None


@pytest.mark.parametrize(
    ("section", "wrong", "field", "code"),
    [
        ("model", {"uri": "/nowhere"}, "model.uri", "object_not_found"),
        (
            "model",
            {"uri": "{model}", "adapter_uri": "/nowhere"},
            "model.adapter_uri",
            "object_not_found",
        ),
        ("output", {"uri_prefix": "{model}"}, "output.uri_prefix", "invalid_spec"),
        ("calibration", {"uri": "/nowhere.txt"}, "calibration.uri", "object_not_found"),
        ("evaluation", {"uri": "/nowhere.txt"}, "evaluation.uri", "object_not_found"),
        (
            "evaluation",
            {"uri": "{text}", "sequences": 1, "tasks": ["piqua"]},
            "evaluation.tasks",
            "invalid_spec",
        ),
    ],
)
def test_a_place_is_checked_without_the_others(
    body: dict[str, Any], section: str, wrong: dict[str, Any], field: str, code: str
) -> None:
    names = {"{model}": body["model"]["uri"], "{text}": body["calibration"]["uri"]}
    wrong = {
        key: names.get(value, value) if isinstance(value, str) else value
        for key, value in wrong.items()
    }
    alone = {section: wrong}
    if section == "output":
        alone["model"] = body["model"]
    assert issues(alone) == {field: code}
    assert issues({**body, section: wrong, "pruning": {"sparsity": 30}})[field] == code


@pytest.mark.parametrize(
    "section",
    [
        {"uri": "/nowhere.txt", "samples": "many"},
        {"uri": "/nowhere.txt", "samples": 0, "sequence_length": []},
        {"uri": "/nowhere.txt", "oddity": 1},
        {"uri": "/nowhere.txt", "format": "xml"},
        {"uri": "/nowhere.txt", "chat_template": True},
        {"uri": "/nowhere.txt", "source": "self"},
        {"uri": "/nowhere.txt", "seed": {"a": [1]}},
    ],
)
def test_what_else_is_wrong_in_a_section_hides_no_missing_text(section: dict[str, Any]) -> None:
    assert issues({"calibration": section}) == {"calibration.uri": "object_not_found"}


def test_a_text_is_not_too_short_for_a_number_that_is_wrong(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a few words that hold some tokens")
    short = {"uri": str(text), "sequence_length": 8}
    for wrong in ("many", 10**9, -1):
        assert issues({"calibration": {**short, "samples": wrong}}) == {}
    for right in ({**short, "samples": 100}, {"uri": str(text), "samples": "many"}):
        assert issues({"calibration": right}) == {"calibration.uri": "invalid_text"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": None, "output": 5, "calibration": [], "evaluation": "x", "labels": {"a": 1}},
        {"model": {}, "output": {"uri_prefix": ""}, "calibration": {}, "evaluation": {}},
        {"model": {"uri": "ftp://x/y"}, "runtime": {"device": "tpu", "priority": []}},
        {"experts": 5, "pruning": {"structures": 5}},
    ],
)
def test_what_names_nothing(body: dict[str, Any]) -> None:
    parts = PartialJob.salvaged(body)
    assert named_uris(parts) == {}
    assert examine_places(parts, open_store) == ([], None)


def test_the_body_stays_as_it_is(body: dict[str, Any]) -> None:
    body["calibration"]["samples"] = "many"
    PartialJob.salvaged(body)
    assert body["calibration"]["samples"] == "many"


def test_experts_are_read_as_experts(body: dict[str, Any]) -> None:
    assert PartialJob.salvaged({"pruning": {"structures": ["experts"], "sparsity": 5}}).experts
    assert not PartialJob.salvaged(body).experts


def test_without_a_field(body: dict[str, Any]) -> None:
    body["evaluation"] |= {"tasks": ["mine"], "task_files": "/tasks"}
    body["model"]["adapter_uri"] = "/adapter"
    job = PartialJob.salvaged(body)
    fields = [*named_uris(job)]
    for field in fields:
        left = named_uris(job.without(field))
        assert field not in left
        section, _, name = field.partition(".")
        whole = name in ("uri", "uri_prefix")
        assert [*left] == [
            each
            for each in fields
            if each != field and not (whole and each.startswith(f"{section}."))
        ]
    for field in fields:
        job = job.without(field)
    assert named_uris(job) == {}


def test_an_output_that_may_be_the_jobs_own(
    tiny_model: Path, text_file: Path, tmp_path: Path
) -> None:
    """A run that broke off can be continued: only the whole job tells whether it was this one."""
    spec = tiny_spec(tiny_model, text_file, tmp_path / "out", evaluation=None)
    run(spec, tmp_path)
    body = spec.model_dump(mode="json", include={"model", "output"})
    assert issues(body) == {"output.uri_prefix": "output_not_empty"}
    (tmp_path / "out" / "strucprune.json").unlink()
    assert issues(body) == {}
    (tmp_path / "out" / "other").touch()
    assert issues(body) == {"output.uri_prefix": "output_not_empty"}


def test_errors_have_their_field(body: dict[str, Any]) -> None:
    body["model"]["uri"] = "org/name"
    found, _ = examine_places(PartialJob.salvaged(body), open_store)
    (error,) = found
    assert isinstance(error, StrucPruneError)
    assert [mend.value for mend in error.mends] == ["hf://org/name"]
