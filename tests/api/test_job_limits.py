"""How large and how long a tenant's jobs may be: said at the field, and kept from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from pydantic import ValidationError

from api.app import create_app
from api.jobs.limits import TenantLimits
from api.jobs.rebuild import rebuild
from api.services import Services
from api.settings import Settings
from strucprune_core.spec import MAX_DEADLINE_SECONDS, RuntimeSpec
from tests.support.routes import JOBS, elsewhere

pytestmark = pytest.mark.usefixtures("flush")

KEY = {"Idempotency-Key": "k"}


@contextmanager
def limited(settings: Settings, keys: dict[str, str], **limits: int) -> Iterator[TestClient]:
    """The app with these limits, called by tenant acme."""
    app = create_app(settings.model_copy(update={"limits": TenantLimits.model_validate(limits)}))
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


def refusals(client: TestClient, body: dict[str, Any]) -> dict[str, str]:
    """Pointer -> detail of what is over a limit, of which validation and submission say the same.

    A job that is not refused is submitted.
    """
    validated = client.post(f"{JOBS}/validate", json=body).json()
    submitted = client.post(JOBS, json=body)
    issues: list[dict[str, Any]] = submitted.json().get("errors", [])
    assert submitted.status_code == (422 if issues else 202)
    assert (validated["valid"], validated["issues"]) == (not issues, issues)
    return {issue["pointer"]: issue["detail"] for issue in issues if issue["code"] == "over_limit"}


def estimate(client: TestClient, body: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = client.post(f"{JOBS}/validate", json=body).json()["estimate"]
    return found


def test_a_worker_chooses_its_gpu(client: TestClient, body: dict[str, Any]) -> None:
    asked = {**body, "runtime": {"device": "cuda:1"}}
    validated = client.post(f"{JOBS}/validate", json=asked).json()
    (issue,) = validated["issues"]
    assert (issue["code"], issue["pointer"]) == ("invalid_spec", "/runtime/device")
    assert "cannot ask for cuda:1: each worker has its own GPU. Ask for cuda" in issue["detail"]
    assert issue["mends"] == [{"field": "runtime.device", "value": "cuda"}]
    submitted = client.post(JOBS, json=asked)
    assert (submitted.status_code, submitted.json()["errors"]) == (422, [issue])
    unfinished = client.post(f"{JOBS}/validate", json={"runtime": {"device": "cuda:1"}})
    assert issue in unfinished.json()["errors"]
    mended = {**body, "runtime": {"device": "cuda"}}
    assert client.post(f"{JOBS}/validate", json=mended).json()["valid"]


def test_the_bytes_of_a_model(
    settings: Settings, client: TestClient, keys: dict[str, str], body: dict[str, Any]
) -> None:
    size = estimate(client, body)["bytes_before"]
    with limited(settings, keys, model_bytes=size) as just_enough:
        assert refusals(just_enough, elsewhere(body)) == {}
    with limited(settings, keys, model_bytes=size - 1) as too_little:
        told = refusals(too_little, body)
    assert list(told) == ["/model/uri"]
    assert f"{size:,}" in told["/model/uri"]
    assert f"{size - 1:,}" in told["/model/uri"]
    assert "smaller model" in told["/model/uri"]


def test_the_scratch_of_many_samples(
    settings: Settings, client: TestClient, keys: dict[str, str], body: dict[str, Any]
) -> None:
    """The remedy is exact: so many samples do, and one more does not."""
    body["calibration"]["samples"] = 4
    needed = estimate(client, body)["workspace_bytes"]
    with limited(settings, keys, scratch_bytes=needed - 1) as too_little:
        body["calibration"]["samples"] = 6
        told = refusals(too_little, body)
        assert list(told) == ["/calibration/samples"]
        assert f"{needed - 1:,}" in told["/calibration/samples"]
        assert "at most 3 samples" in told["/calibration/samples"]
        body["calibration"]["samples"] = 4
        assert list(refusals(too_little, body)) == ["/calibration/samples"]
        body["calibration"]["samples"] = 3
        assert refusals(too_little, body) == {}


def test_the_scratch_that_the_model_alone_takes(
    settings: Settings, keys: dict[str, str], body: dict[str, Any]
) -> None:
    with limited(settings, keys, scratch_bytes=1) as client:
        told = refusals(client, body)
    assert list(told) == ["/model/uri"]
    assert "smaller model" in told["/model/uri"]


def test_a_deadline(settings: Settings, keys: dict[str, str], body: dict[str, Any]) -> None:
    with limited(settings, keys, deadline_seconds=600) as client:
        body["runtime"] = {"deadline_seconds": 600}
        assert refusals(client, elsewhere(body)) == {}
        body["runtime"] = {"deadline_seconds": 601}
        told = refusals(client, body)
    assert list(told) == ["/runtime/deadline_seconds"]
    assert "at most 600" in told["/runtime/deadline_seconds"]


@pytest.mark.parametrize("uri", ["{}/nothing-here", "relative"])
def test_a_deadline_is_refused_beside_what_else_is_wrong(
    settings: Settings, keys: dict[str, str], body: dict[str, Any], uri: str
) -> None:
    body["model"]["uri"] = uri.format(body["model"]["uri"])
    body["runtime"] = {"deadline_seconds": 601}
    with limited(settings, keys, deadline_seconds=600) as client:
        found = client.post(JOBS, json=body).json()["errors"]
    assert {"/model/uri", "/runtime/deadline_seconds"} == {error["pointer"] for error in found}


def test_without_a_deadline_a_job_has_the_longest(
    settings: Settings, keys: dict[str, str], body: dict[str, Any]
) -> None:
    with limited(settings, keys, deadline_seconds=600) as client:
        job = client.post(JOBS, json=body).json()
        assert job["spec"]["runtime"]["deadline_seconds"] == 600
        services: Services = client.app.state.services  # type: ignore[attr-defined]
        entry = services.journal.read_spec(job["id"])
        assert entry is not None
        assert entry.as_new_job(job["id"]).deadline_seconds == 600
    with limited(settings, keys) as client:
        job = client.post(JOBS, json=elsewhere(body)).json()
        assert job["spec"]["runtime"]["deadline_seconds"] is None


def test_what_was_accepted_stays_as_it_was_when_limits_change(
    settings: Settings, keys: dict[str, str], body: dict[str, Any], flush: redis.Redis
) -> None:
    """Also for a replay, and after the ledger is rebuilt from the journal."""
    with limited(settings, keys, deadline_seconds=600) as client:
        first = client.post(JOBS, json=body, headers=KEY)
        assert first.status_code == 202
    for limits in ({}, {"deadline_seconds": 60, "model_bytes": 1, "scratch_bytes": 1}):
        with limited(settings, keys, **limits) as client:
            again = client.post(JOBS, json=body, headers=KEY)
            assert again.headers["Idempotency-Replayed"] == "true"
            assert again.json()["id"] == first.json()["id"]
            assert again.json()["spec"] == first.json()["spec"]
            # The deadline that it got is not what was asked for.
            longer = {**body, "runtime": {"deadline_seconds": 600}}
            other = client.post(JOBS, json=longer, headers=KEY)
            assert other.json()["code"] == "idempotency_key_reused"
            services: Services = client.app.state.services  # type: ignore[attr-defined]
            flush.flushdb()
            rebuild(services.journal, services.ledger, services.stores.open)
            rebuilt = client.get(first.json()["links"]["self"]).json()
            assert rebuilt["spec"] == first.json()["spec"]


def test_a_deadline_that_no_job_may_ask_for_is_no_limit_to_set() -> None:
    """Else a job would be given one that cannot be read back from the journal."""
    RuntimeSpec(deadline_seconds=MAX_DEADLINE_SECONDS)
    TenantLimits(deadline_seconds=MAX_DEADLINE_SECONDS)
    for kind in (RuntimeSpec, TenantLimits):
        with pytest.raises(ValidationError):
            kind(deadline_seconds=MAX_DEADLINE_SECONDS + 1)


@pytest.mark.parametrize(
    ("runtime", "recorded"),
    [
        ({"device": "cuda"}, 3 * 2**30),
        ({"device": "cuda", "device_memory_bytes": 2**30}, 2**30),
        ({"device": "auto"}, None),
        ({"device": "cpu"}, None),
    ],
)
def test_a_job_for_a_gpu_has_a_limit_of_device_memory(
    settings: Settings,
    keys: dict[str, str],
    body: dict[str, Any],
    runtime: dict[str, Any],
    recorded: int | None,
) -> None:
    """It becomes part of the job when it is submitted, so that all workers use the same pieces."""
    body["runtime"] = runtime
    usual = settings.model_copy(update={"gpu_memory_bytes": 3 * 2**30})
    with limited(usual, keys) as client:
        job = client.post(JOBS, json=body).json()
        assert job["spec"]["runtime"]["device_memory_bytes"] == recorded
        told = client.get("/v1/capabilities").json()
    assert told["limits"]["gpu_memory_bytes"] == 3 * 2**30
