from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api.allow_list import uri_issues
from api.settings import Settings
from strucprune_core.spec import JobSpec


def job(**uris: str) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {
                "uri": uris.get("model", "s3://data/team/model"),
                "adapter_uri": uris.get("adapter"),
            },
            "output": {"uri_prefix": uris.get("output", "s3://data/team/out")},
            "pruning": {"sparsity": 0.5},
            "calibration": {"uri": uris.get("text", "s3://data/team/text")},
            "evaluation": {
                "uri": "s3://data/team/eval",
                "tasks": ["mine"],
                "task_files": uris.get("tasks", "s3://data/team/tasks"),
            },
        }
    )


def rules(**changes: Any) -> Settings:
    return Settings.model_validate(
        {
            "redis_url": "redis://nowhere",
            "state_uri": "s3://data/state",
            "key_pepper": "p" * 16,
            **changes,
        }
    )


def refused(spec: JobSpec, settings: Settings) -> list[str | None]:
    return [issue.field for issue in uri_issues(spec, "acme", settings)]


def test_no_list_allows_all_of_s3_and_no_local_path(tmp_path: Path) -> None:
    assert refused(job(), rules()) == []
    assert refused(job(model=str(tmp_path)), rules()) == ["model.uri"]


def test_a_list_is_by_whole_segments() -> None:
    settings = rules(allowed_prefixes={"acme": ["s3://data/team/"]})
    assert refused(job(), settings) == []
    assert refused(job(model="s3://data/team-two/m"), settings) == ["model.uri"]
    assert refused(job(output="s3://other/team/o"), settings) == ["output.uri_prefix"]
    assert refused(job(text="s3://data/team"), settings) == []
    assert refused(job(adapter="s3://data/team/lora"), settings) == []
    assert refused(job(adapter="s3://data/team-two/lora"), settings) == ["model.adapter_uri"]


def test_each_refusal_has_a_cure() -> None:
    listed = rules(allowed_prefixes={"acme": ["s3://data/team", "s3://data/shared"]})
    for spec, settings, cure in (
        (job(model="/srv/model"), rules(), "Use s3://bucket/key."),
        (
            job(model="relative"),
            rules(allow_local_files=True),
            "Give it from the root: /directory/name.",
        ),
        (job(output="s3://data/state/x"), rules(), "Choose another prefix."),
        (
            job(model="s3://elsewhere/y"),
            listed,
            "Use a prefix below s3://data/team, s3://data/shared.",
        ),
        (
            job(model="s3://elsewhere/y"),
            rules(allowed_prefixes={"rival": ["s3://data/rival"]}),
            "Ask the service's operator for one.",
        ),
    ):
        assert cure in [issue.remedy for issue in uri_issues(spec, "acme", settings)]


@pytest.mark.parametrize("output", ["s3://data/state", "s3://data/state/jobs/job_a", "s3://data"])
def test_the_journal_is_out_of_reach(output: str) -> None:
    assert refused(job(output=output), rules()) == ["output.uri_prefix"]


def test_local_paths_where_allowed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    settings = rules(
        allow_local_files=True, allowed_prefixes={"acme": [str(tmp_path), "s3://data"]}
    )
    assert refused(job(model=str(tmp_path / "m")), settings) == []
    for outside in ("relative/m", "~", "~/m", "~root/m"):
        assert refused(job(model=outside), settings) == ["model.uri"]
    assert refused(job(model=f"{tmp_path}/../m"), settings) == ["model.uri"]
    assert refused(job(model=f"{tmp_path}/link/etc"), settings) == ["model.uri"]


def test_a_list_for_some_refuses_all_others() -> None:
    """A mistyped tenant must not open everything to the one that was meant."""
    everything = [
        "model.uri",
        "output.uri_prefix",
        "calibration.uri",
        "evaluation.uri",
        "evaluation.task_files",
    ]
    assert refused(job(), rules(allowed_prefixes={"acne": ["s3://data/team"]})) == everything
    assert refused(job(), rules(allowed_prefixes={"acme": []})) == everything


@pytest.mark.parametrize(
    "prefix", ["s3://", "s3://data/../x", "s3:/data", "data/team", "gs://data"]
)
def test_a_malformed_prefix_fails_at_the_start(prefix: str) -> None:
    with pytest.raises(ValidationError, match="allowed_prefixes"):
        rules(allowed_prefixes={"acme": [prefix]})


ATTEMPTS = {
    "parent": "s3://data/team/../secret",
    "parent at the end": "s3://data/team/..",
    "encoded parent": "s3://data/team/%2e%2e/secret",
    "encoded slash": "s3://data/team%2f..%2fsecret",
    "encoded twice": "s3://data/team/%252e%252e/secret",
    "backslashes": "s3://data/team\\..\\secret",
    "current": "s3://data/./secret",
    "empty segment": "s3://data//team/x",
    "no slash": "s3://data/team-two/x",
    "no slash, a dot": "s3://data/team.x",
    "case of the key": "s3://data/Team/x",
    "case of the bucket": "s3://DATA/team/x",
    "case of the scheme": "S3://data/team/x",
    "a bucket that goes on": "s3://data.evil/team/x",
    "user information": "s3://data@evil/team/x",
    "port": "s3://data:9000/team/x",
    "query before": "s3://data?x=/team/",
    "fragment": "s3://data/secret#/team/",
    "line end": "s3://data/team/x\n",
    "NUL": "s3://data/team/\0/../../secret",
    "a letter that looks like a dot": "s3://data/team/\uff0e\uff0e/../secret",
    "a space before": " s3://data/team/x",
    "another scheme": "http://data/team/x",
    "file": "file://s3://data/team/x",
    "file, absolute": "file:///data/team/x",
    "file, relative": "data/team/x",
    "all of the bucket": "s3://data",
    "all of the bucket, slash": "s3://data/",
}


@pytest.mark.parametrize("uri", ATTEMPTS.values(), ids=ATTEMPTS)
@pytest.mark.parametrize("field", ["model", "output", "text", "tasks"])
def test_attempts_to_leave_the_list(uri: str, field: str) -> None:
    """Each is refused, by the form of the URI or by the list."""
    settings = rules(allowed_prefixes={"acme": ["s3://data/team"]})
    fields = {
        "model": "model.uri",
        "output": "output.uri_prefix",
        "text": "calibration.uri",
        "tasks": "evaluation.task_files",
    }
    try:
        spec = job(**{field: uri})
    except ValidationError:
        return
    assert refused(spec, settings) == [fields[field]]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://data/team",
        "s3://data/team/",
        "s3://data/team/..x/y...z",
        # Names like others: no decoder makes dots of the first, and a key has no query.
        "s3://data/team/%c0%ae%c0%ae/secret",
        "s3://data/team/x?versionId=1",
        "s3://data/team/run #3, 50 % + é",
    ],
)
def test_what_only_looks_like_an_attempt(uri: str) -> None:
    assert refused(job(model=uri), rules(allowed_prefixes={"acme": ["s3://data/team/"]})) == []


@pytest.mark.parametrize("state", ["s3://data/state", "s3://data/state/"])
@pytest.mark.parametrize("output", ["s3://data/state/", "s3://data/state/keys/x", "s3://data/"])
def test_the_state_is_out_of_reach_however_it_is_written(state: str, output: str) -> None:
    assert refused(job(output=output), rules(state_uri=state)) == ["output.uri_prefix"]


def test_links_of_the_state_are_followed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    settings = rules(state_uri=str(tmp_path / "state"), allow_local_files=True)
    for name in ("link", "x/../state", "link/keys"):
        assert refused(job(output=f"{tmp_path}/{name}"), settings) == ["output.uri_prefix"]


def test_a_hub_is_off_by_default() -> None:
    for settings in (
        rules(),
        rules(allowed_prefixes={"acme": ["s3://data"]}),
        rules(hub_repositories={"rival": ["*/*", "datasets/*/*"]}),
    ):
        spec = job(model="hf://org/name", text="hf://datasets/org/name/x.txt")
        assert refused(spec, settings) == ["model.uri", "calibration.uri"]
        assert "operator" in str(uri_issues(spec, "acme", settings)[0].remedy)


def test_a_hub_is_allowed_by_patterns() -> None:
    patterns = ["org/name", "open-*/*-base", "datasets/org/*"]
    settings = rules(
        hub_repositories={"acme": patterns, "*": ["all/*"]},
        allowed_prefixes={"acme": ["s3://data/team"]},
    )
    for uri in (
        "hf://org/name",
        "hf://org/name@v1/sub",
        "hf://models/org/name",
        "hf://open-models/x-base",
        "hf://datasets/org/any",
        "hf://all/any",
    ):
        assert refused(job(model=uri), settings) == []
    for uri in (
        "hf://org/name2",
        "hf://Org/name",
        "hf://open-models/x-base-2",
        "hf://datasets/other/any",
        "hf://datasets/all/any",
        "hf://other/org@x/name",
    ):
        assert refused(job(model=uri), settings) == ["model.uri"]
    (issue,) = uri_issues(job(model="hf://org/other"), "acme", settings)
    assert issue.remedy == (
        "Use one of: hf://org/name, hf://open-*/*-base, hf://datasets/org/*, hf://all/*."
    )
    assert refused(job(model="hf://all/any"), settings) == []
    assert [issue.field for issue in uri_issues(job(model="hf://org/name"), "rival", settings)] == [
        "model.uri",
        "output.uri_prefix",
        "calibration.uri",
        "evaluation.uri",
        "evaluation.task_files",
    ]


@pytest.mark.parametrize(
    "pattern", ["", "org", "org/", "/name", "hf://org/name", "a/b/c", "datasets/a/b/c", "org/[ab]"]
)
def test_a_malformed_pattern_fails_at_the_start(pattern: str) -> None:
    with pytest.raises(ValidationError, match="hub_repositories"):
        rules(hub_repositories={"acme": [pattern]})


def test_state_is_not_kept_on_a_hub() -> None:
    with pytest.raises(ValidationError, match="state_uri"):
        rules(state_uri="hf://org/name")
