"""Bad input is refused at submission, with a pointer and the cure, and leaves no trace.

`tests/core/jobs/test_bad_input.py` has the same for the library and the command.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.services import Services
from api.settings import Settings
from embedded.s3 import S3Server
from strucprune_core.storage import s3
from strucprune_core.storage.s3_settings import S3Settings
from tests.support.broken_model import BREAKAGES, Breakage, broken_copy

JOBS = "/v1/pruning-jobs"
VALIDATE = f"{JOBS}/validate"


def only_issue(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    """The one thing wrong with a job, the same when submitted as when validated."""
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    (issue,) = problem["errors"]
    assert problem["code"] == issue["code"]
    assert issue["detail"] in problem["detail"]
    answer = client.post(VALIDATE, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "valid": False,
        "issues": [issue],
        "estimate": None,
        "runtimes": None,
        "times": [],
        "starts_in": None,
    }
    found: dict[str, Any] = issue
    return found


def is_untouched(services: Services) -> bool:
    """Whether no job was journalled, queued or rung for."""
    return (
        not services.journal.jobs()
        and services.ledger.list("acme").jobs == []
        and services.doorbell.waiting() == 0
    )


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_model(
    client: TestClient,
    services: Services,
    body: dict[str, Any],
    tmp_path: Path,
    tiny_model: Path,
    breakage: Breakage,
) -> None:
    body["model"]["uri"] = str(broken_copy(tiny_model, tmp_path / "in/model", breakage))
    issue = only_issue(client, body)
    assert (issue["code"], issue["pointer"]) == (breakage.code, "/model/uri")
    assert re.search(breakage.words, issue["detail"])
    assert is_untouched(services)


def test_a_sparsity_that_is_not_reached_is_warned_of(
    client: TestClient, body: dict[str, Any]
) -> None:
    body["pruning"] = {"sparsity": 0.2, "layout": "uniform", "multiple_of": 128}
    found = client.post(VALIDATE, json=body).json()["estimate"]
    assert (found["sparsity_requested"], round(found["sparsity_reached"], 4)) == (0.2, 0.3333)
    (warning,) = found["warnings"]
    assert "0.2 was asked for, 0.3333" in warning


@pytest.mark.parametrize("sparsity", [0, 1, -0.3, 1.5, "NaN", "Infinity", None])
def test_a_sparsity_outside_of_its_range(
    client: TestClient, services: Services, body: dict[str, Any], sparsity: object
) -> None:
    body["pruning"]["sparsity"] = sparsity
    for path in (JOBS, VALIDATE):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        (error,) = answer.json()["errors"]
        assert error["pointer"] == "/pruning/sparsity"
        # As if it were left out, which a job may do that counts experts.
        wanted = "This is required" if sparsity is None else "It must be |.*did you mean"
        assert re.match(wanted, error["detail"])
    assert is_untouched(services)


@pytest.mark.parametrize(
    ("changes", "code", "pointer", "words"),
    [
        ({"pruning": {"sparsity": 0.95}}, "invalid_spec", "/pruning/sparsity", "at most 0.9"),
        (
            {"runtime": {"host_memory_bytes": 2**26}},
            "invalid_spec",
            "/runtime/host_memory_bytes",
            "Allow more than",
        ),
        ({"pruning": {"sparsity": 1e-4}}, "invalid_spec", "/pruning/sparsity", "at least"),
        (
            {"pruning": {"sparsity": 0.1, "layout": "uniform", "multiple_of": 128}},
            "invalid_spec",
            "/pruning/sparsity",
            "Ask for 0.3333",
        ),
        ({"calibration": {"samples": 60_000}}, "invalid_text", "/calibration/uri", "longer text"),
        ({"output": {"uri_prefix": "IN_USE"}}, "output_not_empty", "/output/uri_prefix", "new"),
        ({"output": {"uri_prefix": "/proc/new"}}, "access_denied", "/output/uri_prefix", "Choose"),
    ],
    ids=[
        *(
            "out of reach",
            "too little memory",
            "less than a channel",
            "rounds to nothing",
            "text too short",
            "output in use",
        ),
        "output that cannot be written",
    ],
)
def test_what_does_not_fit_the_model_or_the_stores(
    client: TestClient,
    services: Services,
    body: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, dict[str, Any]],
    code: str,
    pointer: str,
    words: str,
) -> None:
    in_use = tmp_path / "in-use"
    in_use.mkdir()
    (in_use / "config.json").write_text("{}", encoding="utf-8")
    for section, change in changes.items():
        body.setdefault(section, {})
        body[section] |= {k: str(in_use) if v == "IN_USE" else v for k, v in change.items()}
    issue = only_issue(client, body)
    assert (issue["code"], issue["pointer"]) == (code, pointer)
    assert words in issue["detail"]
    assert is_untouched(services)


@pytest.mark.services
@pytest.mark.parametrize(
    ("changes", "bucket", "code", "words"),
    [
        ({}, "no-such-bucket", "object_not_found", "no such bucket"),
        ({"access_key_id": "nobody"}, None, "access_denied", "Check the access key"),
        ({"secret_access_key": "wrong-secret"}, None, "access_denied", "Check the access key"),
    ],
    ids=["unknown bucket", "unknown key", "wrong secret"],
)
def test_a_model_out_of_reach(
    s3_server: S3Server,
    settings: Settings,
    keys: dict[str, str],
    flush: redis.Redis,
    body: dict[str, Any],
    changes: dict[str, str],
    bucket: str | None,
    code: str,
    words: str,
) -> None:
    if bucket is None:
        bucket = f"api-{uuid4().hex[:8]}"
        s3_server.create_bucket(bucket)
    body["model"]["uri"] = f"s3://{bucket}/model"
    with on_s3(settings, keys, s3_server, **changes) as client:
        issue = only_issue(client, body)
        assert is_untouched(client.app.state.services)  # type: ignore[attr-defined]
    assert (issue["code"], issue["pointer"]) == (code, "/model/uri")
    assert words in issue["detail"]
    assert "wrong-secret" not in str(issue)


@pytest.mark.services
@pytest.mark.parametrize("section", ["model", "output", "calibration"])
def test_a_storage_that_does_not_answer(
    s3_server: S3Server,
    settings: Settings,
    keys: dict[str, str],
    flush: redis.Redis,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    section: str,
) -> None:
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 1)  # no waiting
    (name,) = {"uri", "uri_prefix"} & set(body[section])
    body[section][name] = "s3://bucket/place"
    with on_s3(settings, keys, s3_server, endpoint_url="http://127.0.0.1:1") as client:
        # Also validation: whether the job is valid cannot be told now.
        for path in (JOBS, VALIDATE):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            assert answer.headers["Retry-After"].isdigit()
            (error,) = answer.json()["errors"]
            assert error["pointer"] == f"/{section}/{name}"
            assert "Check that the S3 endpoint" in error["detail"]
        assert is_untouched(client.app.state.services)  # type: ignore[attr-defined]


@pytest.mark.services
def test_a_service_without_its_bucket_is_not_ready(
    s3_server: S3Server, settings: Settings, keys: dict[str, str], flush: redis.Redis
) -> None:
    settings = settings.model_copy(update={"state_uri": "s3://no-such-bucket/state"})
    with on_s3(settings, keys, s3_server) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "object_not_found" in answer.json()["detail"]


def on_s3(settings: Settings, keys: dict[str, str], server: S3Server, **changes: str) -> TestClient:
    """The app with the server's S3 settings, some of them wrong."""
    right = S3Settings(
        server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        addressing_style="path",
    )
    app = create_app(settings.model_copy(update={"s3": replace(right, **changes)}))  # type: ignore[arg-type]
    return TestClient(app, headers={"Authorization": f"Bearer {keys['acme']}"})
