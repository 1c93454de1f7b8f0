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
from api.jobs.record import Priority, QueuePlace
from api.services import Services
from api.settings import Settings
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.rates import RATES
from tests.support.records import ERROR, new_job
from tests.support.routes import JOBS, elsewhere, submit

ANY = RunningLimits()


def place(ledger: Ledger, job_id: str, limits: RunningLimits = ANY) -> QueuePlace:
    found = ledger.outlook(job_id, "", "normal", limits)
    assert found is not None
    return found.place


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


@pytest.mark.parametrize("busy", [(), ("a",), ("a", "a", "b"), ("c", "c")])
@pytest.mark.parametrize("tenant", ["a", "c", "d"])
@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_the_place_of_a_job_to_come_is_the_one_that_it_then_has(
    ledger: Ledger, busy: tuple[str, ...], tenant: str, priority: Priority
) -> None:
    for number, name in enumerate(busy):
        enter(ledger, f"{name}-busy{number}")
        claim_job(ledger, f"{name}-busy{number}", "w", 60)
    enter(ledger, "a1", "a2", "b1", "a3", "c1")
    before = ledger.outlook("", tenant, priority, ANY)
    assert before is not None
    enter(ledger, f"{tenant}-new", priority=priority)
    assert before.place == place(ledger, f"{tenant}-new")


def test_a_job_that_rests_has_no_place(ledger: Ledger) -> None:
    enter(ledger, "a1")
    claim: Any = claim_job(ledger, "a1", "w", 60)
    assert ledger.outlook("a1", "", "normal", ANY) is None  # it runs
    ledger.retry_later("a1", claim.fence, ERROR)
    assert place(ledger, "a1") == QueuePlace("rest", 0)
    ledger.end_rests(0.0, 10)
    assert place(ledger, "a1") == QueuePlace("turn", 0, 0)
    assert ledger.outlook("a-unknown", "", "normal", ANY) is None


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
    assert client.get(here).json()["queue"] == {
        "position": 2,
        "waits_for": "turn",
        "workers": 1,
        "starts_in": None,  # Nothing is known of how long the job before it takes.
    }
    claim_job(services.ledger, jobs[0]["id"], "w", 60)
    assert client.get(here).json()["queue"]["position"] == 1
    assert client.get(jobs[0]["links"]["self"]).json()["queue"] is None
    assert client.get(JOBS).json()["data"][0]["queue"] is None


def introduce(services: Services, *names: str, pool: str = "small") -> None:
    for name in names:
        about = {"host": name, "pool": pool, "rates": RATES.model_dump_json()}
        services.ledger.note_worker(f"{name}:1", about)


def test_a_job_has_times_before_it_is_submitted(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    introduce(services, "one", "two")
    gpu = RATES.model_copy(update={"device": "a GPU", "kind": "cuda"})
    services.ledger.note_worker("three:1", {"pool": "gpus", "rates": gpu.model_dump_json()})
    found = client.post(f"{JOBS}/validate", json=body).json()
    small, gpus = found["times"]
    assert (small["worker_class"], small["workers"], small["device"]) == ("small", 2, "a processor")
    assert gpus["worker_class"] == "gpus"
    assert 0 < small["least_seconds"] < small["seconds"] < small["most_seconds"]
    assert sum(small["phases"].values()) == pytest.approx(small["seconds"], abs=1)
    assert small["cost"] is None
    # All workers are free.
    assert found["starts_in"]["least_seconds"] == 0
    assert found["starts_in"]["most_seconds"] < 10

    only = {**body, "runtime": {"device": "cpu"}}
    (alone,) = client.post(f"{JOBS}/validate", json=only).json()["times"]
    assert alone["worker_class"] == "small"
    wrong = {**body, "runtime": {"device": "cuda:1"}}
    refused = client.post(f"{JOBS}/validate", json=wrong).json()
    assert (refused["times"], refused["starts_in"]) == ([], None)


def test_a_job_keeps_its_times_and_others_wait_for_it(
    client: TestClient, services: Services, body: dict[str, Any], keys: dict[str, str]
) -> None:
    introduce(services, "one")
    first, second = [submit(client, elsewhere(body)) for _ in range(2)]
    least, most = (first["predicted"]["small"][f"{each}_seconds"] for each in ("least", "most"))
    assert 0 < least < most
    starts = client.get(second["links"]["self"]).json()["queue"]["starts_in"]
    assert starts["least_seconds"] == pytest.approx(least, abs=0.1)
    assert starts["most_seconds"] == pytest.approx(most, abs=5)
    # Another tenant's job comes after the first: turns are taken. It learns times alone.
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    answer = client.post(f"{JOBS}/validate", json=elsewhere(body), headers=rival)
    assert answer.json()["starts_in"]["least_seconds"] == pytest.approx(least, abs=0.1)
    assert first["id"] not in answer.text
    # What is in the journal is what a rebuild restores.
    entry = services.journal.read_spec(first["id"])
    assert entry is not None
    assert entry.as_new_job(first["id"]).predicted["small"].least_seconds == least


def test_times_have_a_price_where_the_operator_names_one(
    settings: Settings,
    keys: dict[str, str],
    body: dict[str, Any],
    inspectors: Inspectors,
    services: Services,
) -> None:
    priced = settings.model_copy(update={"worker_prices": {"small": 36.0}, "currency": "EUR"})
    introduce(services, "one")
    introduce(services, "two", pool="free")
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(create_app(priced, inspectors), headers=headers) as client:
        times = client.post(f"{JOBS}/validate", json=body).json()["times"]
    by_class = {each["worker_class"]: each for each in times}
    small = by_class["small"]
    assert small["cost"]["currency"] == "EUR"
    assert small["cost"]["least"] == pytest.approx(small["least_seconds"] / 100, abs=1e-4)
    assert small["cost"]["most"] == pytest.approx(small["most_seconds"] / 100, abs=1e-4)
    assert by_class["free"]["cost"] is None


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
    measured = {"rates": None, "read_bytes_per_second": None}
    assert worker == {"name": "one:1", **about, "threads": 4, **at_hand, **measured}


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
