"""What the ledger keeps of each tenant, and what becomes of the rest: the archive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.jobs.archive import archive, recall
from api.jobs.journal import Journal, Outcome
from api.jobs.ledger import Ledger
from api.jobs.limits import KeptLimits, TenantLimits
from api.jobs.rebuild import rebuild
from api.jobs.record import Claim, JobRecord
from api.jobs.sequel import delete, retry
from api.jobs.state import JobState
from api.reconciler import Reconciler
from api.services import Services
from api.settings import Settings
from strucprune_core.storage.open import open_store
from tests.support.clock import advance
from tests.support.records import ERROR, journal_entry, new_job
from tests.support.routes import JOBS, elsewhere


def submit(journal: Journal, ledger: Ledger, job_id: str = "job_a") -> JobRecord:
    journal.write_spec(job_id, journal_entry())
    ledger.create(journal_entry().as_new_job(job_id))
    record = ledger.get(job_id)
    assert record is not None
    return record


def cancelled(journal: Journal, ledger: Ledger, job_id: str = "job_a") -> JobRecord:
    submit(journal, ledger, job_id)
    record = ledger.request_cancel(job_id)
    assert record is not None
    return record


def test_an_archived_job_is_as_it_was_and_takes_no_memory(journal: Journal, ledger: Ledger) -> None:
    record = cancelled(journal, ledger)
    assert archive(journal, ledger, record)
    assert ledger.get("job_a") is None
    assert ledger.kept("acme") == (0, 0)
    assert [*ledger._client.scan_iter(ledger._key("*"))] == [ledger._key("counts")]
    assert recall(journal, ledger, "job_a") == record
    assert ledger.get("job_a") is None
    outcome = journal.read_outcome("job_a")
    assert outcome is not None
    assert outcome.state is JobState.CANCELLED


def test_a_rebuild_leaves_the_archive_alone(journal: Journal, ledger: Ledger) -> None:
    archive(journal, ledger, cancelled(journal, ledger))
    submit(journal, ledger, "job_b")
    assert rebuild(journal, ledger, open_store) == 0
    assert ledger.get("job_a") is None


def test_an_archived_job_can_be_retried_and_archived_again(
    journal: Journal, ledger: Ledger
) -> None:
    archive(journal, ledger, cancelled(journal, ledger))
    record = recall(journal, ledger, "job_a")
    assert record is not None
    assert retry(journal, ledger, record)
    again = recall(journal, ledger, "job_a")
    assert again is not None
    assert (again.state, again.run) == (JobState.QUEUED, 2)
    assert isinstance(ledger.claim("w", 60).claim, Claim)
    assert not archive(journal, ledger, record)  # a look at it from before
    assert ledger.get("job_a") is not None
    journal.write_outcome("job_a", Outcome(state=JobState.SUCCEEDED, run=2, finished_at=1.0))
    rebuild(journal, ledger, open_store)
    ended = ledger.get("job_a")
    assert ended is not None
    assert archive(journal, ledger, ended)
    found = recall(journal, ledger, "job_a")
    assert found is not None
    assert (found.state, found.run) == (JobState.SUCCEEDED, 2)


def test_an_archived_job_can_be_deleted(journal: Journal, ledger: Ledger) -> None:
    archive(journal, ledger, cancelled(journal, ledger))
    record = recall(journal, ledger, "job_a")
    assert record is not None
    assert delete(journal, ledger, open_store, record)
    assert recall(journal, ledger, "job_a") is None
    assert {name.key for name in journal._store.list("jobs/")} == {"jobs/job_a/sequel-1.json"}


def test_a_death_between_archive_and_ledger_is_healed(journal: Journal, ledger: Ledger) -> None:
    record = cancelled(journal, ledger)
    journal.write_archived(record)
    assert ledger.crowded(KeptLimits((0, None)), 0.9, 10) == ["job_a"]
    assert archive(journal, ledger, record)
    assert recall(journal, ledger, "job_a") == record


def test_retention_reaches_the_archive(journal: Journal, ledger: Ledger) -> None:
    record = cancelled(journal, ledger)
    journal.workspace("job_a").put("units/x", b"x")
    archive(journal, ledger, record)
    rebuild(journal, ledger, open_store, retention_seconds=3600)
    assert recall(journal, ledger, "job_a") == record
    advance(ledger, 2)
    rebuild(journal, ledger, open_store, retention_seconds=0)
    assert recall(journal, ledger, "job_a") is None
    assert journal.workspace("job_a").stat("units/x") is None


def test_memory_is_counted_through_every_change(ledger: Ledger) -> None:
    ledger.create(new_job())
    jobs, queued = ledger.kept("acme")
    assert jobs == 1
    claim = ledger.claim("w", 60).claim
    assert isinstance(claim, Claim)
    lines = [{"at": 1.0, "level": "INFO", "message": 1000 * "x"} for _ in range(100)]
    ledger.append_logs("job_a", claim.fence, lines)
    ledger.retry_later("job_a", claim.fence, ERROR)
    _, with_log = ledger.kept("acme")
    assert with_log > queued + 100_000
    ledger.request_cancel("job_a")
    assert ledger.forget("job_a")
    assert ledger.kept("acme") == (0, 0)


def test_the_oldest_of_what_is_over_goes_first(ledger: Ledger) -> None:
    for number in range(10):
        ledger.create(new_job(f"job_{number}", created_at=1000.0 + number))
    ledger.create(new_job("job_x", tenant="rival"))
    ledger.request_cancel("job_x")
    for number in (7, 3, 5):
        ledger.request_cancel(f"job_{number}")

    def crowded(jobs: int | None, size_bytes: int | None, limit: int = 10) -> list[str]:
        return ledger.crowded(KeptLimits((jobs, size_bytes), {"rival": (None, None)}), 0.9, limit)

    assert crowded(None, None) == []
    assert crowded(20, None) == []
    assert crowded(10, None) == ["job_3"]  # nine are ninety percent
    assert crowded(9, None, limit=1) == ["job_3"]
    assert crowded(9, None) == ["job_3", "job_5"]
    assert crowded(1, None) == ["job_3", "job_5", "job_7"]  # what is not over stays
    _, size = ledger.kept("acme")
    assert crowded(None, size) == ["job_3"] or crowded(None, size) == ["job_3", "job_5"]
    ledger._client.zadd(ledger._key("webhooks"), {"job_3": time.time(), "job_5": float("inf")})
    assert crowded(1, None) == ["job_5", "job_7"]


def test_the_reconciler_archives_what_is_too_much(
    journal: Journal, ledger: Ledger, flush: redis.Redis, services: Services
) -> None:
    for number in range(5):
        cancelled(journal, ledger, f"job_{number}")
    submit(journal, ledger, "job_open")
    Reconciler(
        journal,
        ledger,
        services.doorbell,
        open_store=open_store,
        kept_limits=KeptLimits((4, None)),
        requeue_after_seconds=60,
        rebuild_every_seconds=3600,
    ).step()
    kept = {job.id for job in ledger.list("acme").jobs}
    assert kept == {"job_3", "job_4", "job_open"}
    assert all(recall(journal, ledger, f"job_{number}") for number in range(5))


@pytest.fixture
def crowded_app(
    settings: Settings, keys: dict[str, str], flush: redis.Redis
) -> Iterator[TestClient]:
    limits = {"acme": TenantLimits(kept_jobs=3)}
    app = create_app(settings.model_copy(update={"tenant_limits": limits}))
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


def test_jobs_that_are_over_count_until_they_are_archived(
    crowded_app: TestClient, body: dict[str, Any], keys: dict[str, str]
) -> None:
    services: Services = crowded_app.app.state.services  # type: ignore[attr-defined]
    urls = []
    for number in range(3):
        accepted = crowded_app.post(JOBS, json=body, headers={"Idempotency-Key": f"{number}"})
        assert accepted.status_code == 202
        urls.append(accepted.json()["links"]["self"])
        assert crowded_app.post(f"{urls[-1]}/cancel").status_code == 200
    before = crowded_app.get(urls[0]).json()
    refused = crowded_app.post(JOBS, json=body)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert int(refused.headers["Retry-After"]) > 0
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    assert crowded_app.post(JOBS, json=body, headers=rival).status_code == 202
    for job_id in services.ledger.crowded(services.settings.kept_limits, 0.9, 10):
        record = services.ledger.get(job_id)
        assert record is not None
        assert archive(services.journal, services.ledger, record)
    own = elsewhere(body)
    assert crowded_app.post(JOBS, json=own, headers={"Idempotency-Key": "3"}).status_code == 202
    # The first is in the archive now, for its tenant as it was.
    assert len(crowded_app.get(JOBS).json()["data"]) == 3
    assert crowded_app.get(urls[0]).json() == before
    assert crowded_app.get(urls[0], headers=rival).status_code == 404
    assert crowded_app.get(f"{urls[0]}/events").json()["data"] == []
    stream = crowded_app.get(f"{urls[0]}/events", headers={"Accept": "text/event-stream"})
    assert (stream.status_code, "data:" in stream.text) == (200, False)  # it ends at once
    assert crowded_app.get(urls[0], headers={"Prefer": "wait=20"}).json() == before
    assert crowded_app.get(f"{urls[0]}/logs").json()["data"] == []
    assert crowded_app.post(f"{urls[0]}/cancel").status_code == 200
    assert crowded_app.post(f"{urls[0]}/pause").status_code == 409
    replay = crowded_app.post(JOBS, json=body, headers={"Idempotency-Key": "0"})
    assert (replay.status_code, replay.json()["state"]) == (202, "cancelled")
    assert crowded_app.delete(urls[0]).status_code == 204
    assert crowded_app.get(urls[0]).status_code == 404


def test_labels_are_bounded(client: TestClient, body: dict[str, Any]) -> None:
    body["labels"] = {f"{number:063}": 255 * "x" for number in range(64)}
    refused = client.post(JOBS, json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/labels"
    body["labels"] = {f"{number}": "x" for number in range(64)}
    assert client.post(JOBS, json=body).status_code == 202


def test_a_priority_above_the_tenants_is_refused(
    settings: Settings, keys: dict[str, str], flush: redis.Redis, body: dict[str, Any]
) -> None:
    limits = {"acme": TenantLimits(max_priority="normal")}
    app = create_app(settings.model_copy(update={"tenant_limits": limits}))
    with TestClient(app, headers={"Authorization": f"Bearer {keys['acme']}"}) as client:
        for priority, status in (("low", 202), ("normal", 202), ("high", 422)):
            body["runtime"] = {"priority": priority}
            answer = client.post(JOBS, json=elsewhere(body))
            assert answer.status_code == status
        assert answer.json()["errors"][0]["pointer"] == "/runtime/priority"


def test_a_few_jobs_take_a_few_keys(services: Services, client: TestClient, body: Any) -> None:
    """Whatever their labels: a label had an index of its own."""
    body["labels"] = {f"name-{number}": "x" for number in range(60)}
    before = set(services.ledger._client.scan_iter("strucprune:*"))
    assert client.post(JOBS, json=body).status_code == 202
    job_id = services.ledger.list("acme").jobs[0].id
    client.post(f"{JOBS}/{job_id}/cancel")
    added = set(services.ledger._client.scan_iter("strucprune:*")) - before
    assert len([key for key in added if job_id in key]) == 2
    _, size = services.ledger.kept("acme")
    assert size < 16_000
