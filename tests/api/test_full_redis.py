"""A Redis that has reached its `maxmemory`: the API says so and reads on, the reconciler heals."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.jobs.ledger import Ledger, LedgerFull, connect
from api.jobs.limits import KeptLimits, TenantLimits
from api.jobs.record import Claim, Signal
from api.jobs.seats import LEADER
from api.jobs.state import JobState
from api.reconciler import Reconciler
from api.settings import Settings
from embedded.valkey import ValkeyServer
from strucprune_core.storage.open import open_store
from tests.support.full_redis import fill, mend
from tests.support.records import ERROR, new_job
from tests.support.routes import JOBS, elsewhere


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A server that may be full."""
    with ValkeyServer(tmp_path_factory.mktemp("full")) as server:
        yield server


@pytest.fixture
def server(own_valkey: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.flushall()
        yield client
        mend(client)


@pytest.fixture
def own_ledger(own_valkey: ValkeyServer, server: redis.Redis) -> Iterator[Ledger]:
    ledger = connect(own_valkey.url, f"full-{uuid4().hex}")
    yield ledger
    ledger.close()


@pytest.fixture
def app(
    own_valkey: ValkeyServer, server: redis.Redis, settings: Settings, keys: dict[str, str]
) -> Iterator[TestClient]:
    limits = TenantLimits(requests_per_second=1000, request_burst=1000)
    changed = {"redis_url": own_valkey.url, "limits": limits}
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    own = create_app(settings.model_copy(update=changed))
    with TestClient(own, headers=headers, raise_server_exceptions=False) as client:
        yield client


def test_the_api_reads_on_and_asks_to_come_back_with_what_is_new(
    app: TestClient, server: redis.Redis, body: dict[str, Any]
) -> None:
    accepted = app.post(JOBS, json=body)
    assert accepted.status_code == 202
    here = accepted.json()["links"]["self"]
    assert app.get("/readyz").status_code == 200
    fill(server)
    ready = app.get("/readyz")
    assert (ready.status_code, ready.json()["detail"]) == (503, "Not ready: ledger_full.")
    assert app.get("/healthz").status_code == 200
    refused = app.post(JOBS, json=body, headers={"Idempotency-Key": "a"})
    assert (refused.status_code, refused.json()["code"]) == (503, "ledger_full")
    assert int(refused.headers["Retry-After"]) > 0
    assert app.get(here).json()["state"] == "queued"
    assert len(app.get(JOBS, params={"label": "team=nlp"}).json()["data"]) == 1
    assert app.get(f"{here}/events").status_code == 200
    # Also what makes room is done.
    assert app.post(f"{here}/cancel").status_code == 200
    assert app.delete(here).status_code == 204
    mend(server)
    assert app.get("/readyz").status_code == 200
    assert app.post(JOBS, json=body, headers={"Idempotency-Key": "a"}).status_code == 202


def test_a_running_job_keeps_its_lease_and_ends(own_ledger: Ledger, server: redis.Redis) -> None:
    own_ledger.create(new_job(max_workers=3))
    own_ledger.create(new_job("job_b"))
    claim = own_ledger.claim("w", 60).claim
    assert isinstance(claim, Claim)
    own_ledger.seats.reserve_unit("job_a", claim.fence, LEADER, ["a", "b", "c"])
    place = own_ledger.seats.take("job_a", "one", 60)
    assert place is not None
    fill(server)
    assert own_ledger.heartbeat("job_a", claim.fence, 60, {"phase": "solving"}) is Signal.CONTINUE
    assert own_ledger.seats.beat(place, 60) is Signal.CONTINUE
    assert own_ledger.seats.reserve_unit("job_a", claim.fence, LEADER, ["b", "c"]).unit == "b"
    with pytest.raises(LedgerFull):
        own_ledger.append_logs("job_a", claim.fence, [{"message": "x"}])
    with pytest.raises(LedgerFull):
        own_ledger.create(new_job("job_c"))
    assert own_ledger.seats.leave(place)
    assert own_ledger.finish("job_a", claim.fence, JobState.SUCCEEDED)
    # The next one may start, fail for now, be taken back, be cancelled.
    second = own_ledger.claim("w", 60).claim
    assert isinstance(second, Claim)
    assert own_ledger.retry_later("job_b", second.fence, ERROR) is JobState.QUEUED
    assert own_ledger.end_rests(0, 10) == ["job_b"]
    third = own_ledger.claim("w", -1).claim
    assert isinstance(third, Claim)
    assert own_ledger.requeue_expired(10) == ["job_b"]
    record = own_ledger.request_cancel("job_b")
    assert record is not None
    assert record.state is JobState.CANCELLED
    assert own_ledger.forget("job_b")


def test_a_reconciler_makes_room_though_it_cannot_restore(
    app: TestClient, server: redis.Redis, body: dict[str, Any]
) -> None:
    services = app.app.state.services  # type: ignore[attr-defined]
    for _ in range(3):
        here = app.post(JOBS, json=elsewhere(body)).json()["links"]["self"]
    app.post(f"{here}/cancel")
    lost = services.ledger.list("acme").jobs[-1].id
    services.ledger.request_cancel(lost)
    services.ledger.forget(lost)  # the journal has it
    reconciler = Reconciler(
        services.journal,
        services.ledger,
        services.doorbell,
        open_store=open_store,
        kept_limits=KeptLimits((1, None)),
        requeue_after_seconds=0.0,
        rebuild_every_seconds=0.0,
    )
    fill(server)
    with pytest.raises(LedgerFull):
        reconciler.step()
    # The one that was over is in the archive.
    assert [job.state for job in services.ledger.list("acme").jobs] == ["queued"]
    mend(server)
    reconciler.step()
    assert len(services.ledger.list("acme").jobs) == 2


def test_one_tenant_cannot_fill_redis(
    own_valkey: ValkeyServer,
    server: redis.Redis,
    settings: Settings,
    keys: dict[str, str],
    body: dict[str, Any],
) -> None:
    """Submitting and cancelling as fast as it may, it meets its limit, and the other none."""
    changed = {"redis_url": own_valkey.url, "limits": TenantLimits(kept_bytes=2**20)}
    body["labels"] = {f"name-{number}": 60 * "x" for number in range(50)}
    used: Any = server.info("memory")
    server.config_set("maxmemory", used["used_memory"] + 6 * 2**20)
    own = create_app(settings.model_copy(update=changed))
    with TestClient(own, raise_server_exceptions=False) as client:
        greedy = {"Authorization": f"Bearer {keys['acme']}"}

        def submit_and_cancel(_: int) -> int:
            answer = client.post(JOBS, json=elsewhere(body), headers=greedy)
            if answer.status_code == 202:
                client.post(f"{answer.json()['links']['self']}/cancel", headers=greedy)
            return answer.status_code

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(submit_and_cancel, range(150)))
        assert set(answers) == {202, 429}
        assert answers[-1] == 429
        services = own.state.services
        jobs, size = services.ledger.kept("acme")
        assert size < 1.2 * 2**20
        after: Any = server.info("memory")
        assert after["used_memory"] - used["used_memory"] < 4 * 2**20
        # What is counted is what is taken, doorbells and indexes apart.
        assert size > 0.5 * (after["used_memory"] - used["used_memory"]), jobs
        assert services.doorbell.waiting() <= jobs
        other = {"Authorization": f"Bearer {keys['rival']}"}
        assert client.post(JOBS, json=body, headers=other).status_code == 202
