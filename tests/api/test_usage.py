"""Where a job stands in the queue, which workers there are, and what a tenant has of its limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.inspection.inspectors import Inspectors
from api.jobs.ledger import WORKER_SECONDS, Ledger
from api.jobs.limits import RunningLimits, TenantLimits
from api.jobs.record import QueuePlace
from api.services import Services
from api.settings import Settings
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import ERROR, new_job
from tests.support.routes import JOBS, elsewhere, submit

ANY = RunningLimits()


def place(ledger: Ledger, job_id: str, limits: RunningLimits = ANY) -> QueuePlace:
    found = ledger.queue_place(job_id, limits)
    assert found is not None
    return found


def enter(ledger: Ledger, *names: str, **changes: Any) -> None:
    """Jobs of the tenant that their name begins with."""
    for name in names:
        ledger.create(new_job(name, tenant=name[0], **changes))


def claimed_in_order(ledger: Ledger, limits: RunningLimits = ANY) -> Iterator[str]:
    """Jobs as workers claim them while none ends."""
    while (record := ledger.claim("w", 60, limits).record) is not None:
        yield record.id


@pytest.mark.parametrize("busy", [(), ("a",), ("a", "a", "b"), ("c", "c")])
@pytest.mark.parametrize("most", [None, 3])
def test_places_are_those_of_the_claims_that_follow(
    ledger: Ledger, busy: tuple[str, ...], most: int | None
) -> None:
    """Whoever has workers at the beginning, and whatever the order of arrival."""
    limits = RunningLimits(most)
    for number, tenant in enumerate(busy):
        enter(ledger, f"{tenant}-busy{number}")
        claim_job(ledger, f"{tenant}-busy{number}", "w", 60)
    enter(ledger, "a1", "a2", "b1", "a3", "c1", "c2", "b2", "a4", "a5")
    enter(ledger, "a-urgent", priority="high")
    waiting = ["a1", "a2", "b1", "a3", "c1", "c2", "b2", "a4", "a5", "a-urgent"]
    places = {job_id: place(ledger, job_id, limits) for job_id in waiting}
    claimed = [*claimed_in_order(ledger, limits)]
    assert len(claimed) >= 5
    for number, job_id in enumerate(claimed):
        assert (job_id, places[job_id].ahead, places[job_id].waits_for) == (job_id, number, "turn")
    for job_id in set(waiting) - {*claimed}:
        assert places[job_id].waits_for == "limit"


def test_a_job_that_rests_has_no_place(ledger: Ledger) -> None:
    enter(ledger, "a1")
    claim: Any = claim_job(ledger, "a1", "w", 60)
    assert ledger.queue_place("a1", ANY) is None  # it runs
    ledger.retry_later("a1", claim.fence, ERROR)
    assert place(ledger, "a1") == QueuePlace("rest", 0)
    ledger.end_rests(0.0, 10)
    assert place(ledger, "a1") == QueuePlace("turn", 0, 0)
    assert ledger.queue_place("a-unknown", ANY) is None


def test_workers_are_those_that_have_spoken_lately(ledger: Ledger) -> None:
    ledger.note_worker("one:1", {"host": "one", "pool": "h200", "version": "1"})
    ledger.note_worker("one:1", {"job_id": "job_a", "part": "lead", "phase": "solving"})
    ledger.note_worker("one:1", {"device": "NVIDIA H200", "threads": "8"})
    ledger.note_worker("two:2", {"host": "two"})
    first, second = ledger.workers()
    assert (first.name, first.pool, first.job_id, first.part) == ("one:1", "h200", "job_a", "lead")
    assert (first.device, first.threads, second.device) == ("NVIDIA H200", 8, None)
    enter(ledger, "a1")
    assert place(ledger, "a1").workers == 2
    # The main process lives, but the one that had the job does not.
    advance(ledger, WORKER_SECONDS + 1)
    ledger.note_worker("one:1", {"host": "one"})
    (left,) = ledger.workers()
    assert (left.name, left.job_id, left.phase) == ("one:1", None, None)
    assert place(ledger, "a1").workers == 1
    ledger.forget_worker("one:1")
    assert ledger.workers() == []


def test_a_waiting_job_shows_its_place(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    services.ledger.note_worker("one:1", {"host": "one"})
    jobs = [submit(client, elsewhere(body)) for _ in range(2)]
    here = jobs[1]["links"]["self"]
    assert client.get(here).json()["queue"] == {"position": 2, "waits_for": "turn", "workers": 1}
    claim_job(services.ledger, jobs[0]["id"], "w", 60)
    assert client.get(here).json()["queue"]["position"] == 1
    assert client.get(jobs[0]["links"]["self"]).json()["queue"] is None
    assert client.get(JOBS).json()["data"][0]["queue"] is None


def test_operators_see_the_workers(
    client: TestClient, services: Services, keys: dict[str, str]
) -> None:
    about = {"host": "one", "pool": "cpu", "version": "0.1.0", "device": "cpu", "threads": "4"}
    services.ledger.note_worker("one:1", about)
    at_hand = {"job_id": "job_a", "part": "help", "phase": "solving", "unit": "solve.3"}
    services.ledger.note_worker("one:1", at_hand)
    headers = {"Authorization": f"Bearer {keys['operator']}"}
    (worker,) = client.get("/v1/workers", headers=headers).json()["data"]
    assert worker.pop("last_heartbeat_at") >= worker.pop("started_at")
    assert worker == {"name": "one:1", **about, "threads": 4, **at_hand}


@pytest.fixture
def limited(
    settings: Settings, keys: dict[str, str], flush: redis.Redis, inspectors: Inspectors
) -> Iterator[TestClient]:
    few = settings.model_copy(update={"limits": TenantLimits(open_jobs=7, running_jobs=2)})
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(create_app(few, inspectors), headers=headers) as client:
        yield client


def test_a_quota_has_limits_and_use(limited: TestClient, body: dict[str, Any]) -> None:
    services: Services = limited.app.state.services  # type: ignore[attr-defined]
    jobs = [submit(limited, elsewhere(body)) for _ in range(3)]
    claim_job(services.ledger, jobs[0]["id"], "w", 60)
    limited.post(jobs[2]["links"]["cancel"])
    quota = limited.get("/v1/quota").json()
    assert quota["limits"]["open_jobs"] == 7
    assert quota["limits"]["model_bytes"] is None
    kept_bytes = quota["use"].pop("kept_bytes")
    assert kept_bytes > 3000
    assert quota["use"] == {"open_jobs": 2, "running_jobs": 1, "kept_jobs": 3}
