"""Submitting: once per key, and no crash between two steps loses or doubles a job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.jobs.doorbell import Doorbell
from api.jobs.ledger import Ledger
from api.jobs.state import JobState
from api.problems import ApiError
from api.reconciler import Reconciler
from api.services import Services
from api.submission import submit
from strucprune_core.spec import JobSpec
from tests.support import routes
from tests.support.claims import claim_job


class Died(Exception):
    """Stands for a kill -9."""


@pytest.fixture
def spec(body: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate(body)


def elsewhere(spec: JobSpec) -> JobSpec:
    """The same job with an output of its own."""
    return JobSpec.model_validate(routes.elsewhere(spec.model_dump(mode="json")))


def test_a_job_is_journalled_queued_and_rung_for(services: Services, spec: JobSpec) -> None:
    submission = submit(services, "acme", spec, None)
    assert not submission.replayed
    record = submission.record
    assert record.state == JobState.QUEUED
    entry = services.journal.read_spec(record.id)
    assert entry is not None
    assert entry.spec == spec
    assert entry.scratch_bytes == record.scratch_bytes > 0
    assert services.doorbell.waiting() == 1


def test_without_a_key_every_request_is_a_job(services: Services, spec: JobSpec) -> None:
    first, second = (submit(services, "acme", elsewhere(spec), None) for _ in range(2))
    assert first.record.id != second.record.id


def test_a_replay_gives_the_same_job_even_after_it_ran(
    services: Services, spec: JobSpec, tmp_path: Path
) -> None:
    first = submit(services, "acme", spec, "key")
    claim = claim_job(services.ledger, first.record.id, "w", 60)
    assert claim is not None
    # The output prefix is no longer empty, which must not matter now.
    (tmp_path / "output").mkdir()
    (tmp_path / "output/model.safetensors").touch()
    second = submit(services, "acme", spec, "key")
    assert (second.replayed, second.record.id) == (True, first.record.id)
    assert second.record.state == JobState.RUNNING


def test_a_key_belongs_to_one_body(services: Services, spec: JobSpec) -> None:
    submit(services, "acme", spec, "key")
    other = spec.model_copy(update={"labels": {"team": "vision"}})
    with pytest.raises(ApiError) as caught:
        submit(services, "acme", other, "key")
    assert (caught.value.status_code, caught.value.code) == (422, "idempotency_key_reused")


def test_a_key_belongs_to_one_tenant(services: Services, spec: JobSpec) -> None:
    ours, theirs = (
        submit(services, tenant, elsewhere(spec), "key") for tenant in ("acme", "rival")
    )
    assert not theirs.replayed
    assert ours.record.id != theirs.record.id


def test_racing_requests_with_one_key_make_one_job(services: Services, spec: JobSpec) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: submit(services, "acme", spec, "key"), range(8)))
    assert len({submission.record.id for submission in made}) == 1
    assert sum(not submission.replayed for submission in made) == 1
    assert len(services.ledger.list("acme").jobs) == 1


class _DiesOnCreate(Ledger):
    def create(self, new: object) -> bool:
        raise Died


class _DiesOnGet(Ledger):
    def get(self, job_id: str) -> None:
        raise Died


class _DiesOnRing(Doorbell):
    def ring(self) -> bool:
        raise Died


def _dying(services: Services, redis_url: str, step: str) -> Services:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    if step == "ring":
        return replace(services, doorbell=_DiesOnRing(redis_url))
    dying = _DiesOnCreate if step == "create" else _DiesOnGet
    return replace(services, ledger=dying(client))


def _reconciler(services: Services) -> Reconciler:
    return Reconciler(
        services.journal,
        services.ledger,
        services.doorbell,
        open_store=services.stores.open,
        requeue_after_seconds=0.0,
        rebuild_every_seconds=0.0,
    )


@pytest.mark.parametrize("step", ["create", "get", "ring"])
@pytest.mark.parametrize("healer", ["client", "reconciler"])
def test_a_death_between_two_steps_is_healed(
    services: Services, spec: JobSpec, redis_url: str, step: str, healer: str
) -> None:
    # The ledger is known to be complete: only the periodic comparison can find the job.
    services.ledger.mark_intact()
    with pytest.raises(Died):
        submit(_dying(services, redis_url, step), "acme", spec, "key")
    if healer == "client":
        assert submit(services, "acme", spec, "key").replayed
    else:
        _reconciler(services).step()
    (job,) = services.ledger.list("acme").jobs
    assert job.state == JobState.QUEUED
    assert services.doorbell.waiting()


def test_death_before_the_journal_leaves_nothing(
    services: Services, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> bool:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(services.journal, "write_spec", die)
        with pytest.raises(Died):
            submit(services, "acme", spec, "key")
    _reconciler(services).step()
    assert services.ledger.list("acme").jobs == []
    assert not submit(services, "acme", spec, "key").replayed


def test_bad_input_is_refused_before_anything_is_journalled(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    body["model"]["uri"] += "/nothing-here"
    body["calibration"]["samples"] = 60_000
    answer = client.post("/v1/pruning-jobs", json=body)
    assert answer.status_code == 422
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers == {"/model/uri", "/calibration/uri"}
    assert services.journal.jobs() == {}
    assert services.ledger.list("acme").jobs == []
