from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.concurrency import run_in_threadpool

from api import event_feed
from api.app import create_app
from api.inspection.inspectors import Inspectors
from api.jobs.ledger import connect
from api.jobs.limits import TenantLimits
from api.routes import events
from api.settings import Settings
from tests.support.claims import claim_job
from tests.support.routes import JOBS, submit
from tests.support.serving import served

SSE = {"Accept": "text/event-stream"}


def ids_of(stream: str) -> list[str]:
    return [line[4:] for line in stream.splitlines() if line.startswith("id: ")]


def test_json(client: TestClient, body: dict[str, Any]) -> None:
    job = submit(client, body)
    client.post(job["links"]["cancel"])
    page = client.get(job["links"]["events"]).json()
    assert [event["data"]["state"] for event in page["data"]] == ["queued", "cancelled"]
    assert page["next_after"] == page["data"][-1]["id"]
    params = {"after": page["data"][0]["id"]}
    assert client.get(job["links"]["events"], params=params).json()["data"] == page["data"][1:]
    params = {"after": page["next_after"]}
    assert client.get(job["links"]["events"], params=params).json() == {
        "data": [],
        "next_after": page["next_after"],
    }


def test_bad_position(client: TestClient, body: dict[str, Any]) -> None:
    job = submit(client, body)
    assert client.get(job["links"]["events"], params={"after": "(1"}).status_code == 422


def test_stream_of_a_finished_job_ends(client: TestClient, body: dict[str, Any]) -> None:
    job = submit(client, body)
    client.post(job["links"]["cancel"])
    answer = client.get(job["links"]["events"], headers=SSE)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    ids = ids_of(answer.text)
    assert len(ids) == 2
    assert "event: state\n" in answer.text
    resumed = client.get(job["links"]["events"], headers={**SSE, "Last-Event-ID": ids[0]})
    assert ids_of(resumed.text) == ids[1:]
    assert client.get(f"{JOBS}/job_x/events", headers=SSE).status_code == 404


@pytest.fixture
def app(settings: Settings, flush: redis.Redis, inspectors: Inspectors) -> FastAPI:
    return create_app(settings, inspectors)


@pytest.fixture
def live(app: FastAPI, keys: dict[str, str]) -> Iterator[httpx.Client]:
    """The app behind a real server: the test client does not stream."""
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with (
        served(app) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client,
    ):
        yield client


def test_stream_follows_a_job(
    live: httpx.Client,
    redis_url: str,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_feed, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(events, "CONFIRM_SECONDS", 0.05)
    monkeypatch.setattr(events, "COMMENT_SECONDS", 0.05)
    job = live.post(JOBS, json=body).json()
    ledger = connect(redis_url)
    states: list[str] = []
    comments = 0
    with live.stream("GET", job["links"]["events"], headers=SSE, timeout=10) as answer:
        for line in answer.iter_lines():
            if line.startswith(": "):
                comments += 1
                if comments == 1:
                    claim_job(ledger, job["id"], "w", 60)
                elif comments == 2:
                    ledger.request_cancel(job["id"])
                elif comments == 3:
                    record = ledger.get(job["id"])
                    assert record is not None
                    ledger.release(job["id"], record.fence)
            elif line.startswith("data: "):
                states.append(line.split('"state":"')[1].split('"')[0])
    assert states == ["queued", "running", "cancelling", "cancelled"]
    ledger.close()


def states_of(stream: Iterator[str]) -> Iterator[tuple[int, str]]:
    for line in stream:
        if line.startswith("data: "):
            data = json.loads(line[6:])["data"]
            yield data["run"], data["state"]


def test_stream_of_a_retried_job_goes_on_to_the_end_of_its_last_run(
    live: httpx.Client, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "POLL_SECONDS", 0.02)
    job = live.post(JOBS, json=body).json()
    live.post(job["links"]["cancel"])
    live.post(job["links"]["retry"])
    states: list[tuple[int, str]] = []
    with live.stream("GET", job["links"]["events"], headers=SSE, timeout=10) as answer:
        for state in states_of(answer.iter_lines()):
            states.append(state)
            if state == (2, "queued"):
                live.post(job["links"]["cancel"])
    assert states == [(run, state) for run in (1, 2) for state in ("queued", "cancelled")]


def test_stream_of_a_job_that_is_retried_as_its_end_is_read(
    live: httpx.Client, app: FastAPI, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two reads, of the job and of its events."""
    monkeypatch.setattr(event_feed, "POLL_SECONDS", 0.02)
    ledger, reads = app.state.services.ledger, app.state.services.job_reads
    job = live.post(JOBS, json=body).json()
    live.post(job["links"]["cancel"])
    read = reads.events_after

    async def retried(*arguments: Any) -> Any:
        monkeypatch.setattr(reads, "events_after", read)
        await run_in_threadpool(ledger.reopen, job["id"], 1)
        return await read(*arguments)

    monkeypatch.setattr(reads, "events_after", retried)
    states: list[tuple[int, str]] = []
    with live.stream("GET", job["links"]["events"], headers=SSE, timeout=10) as answer:
        for state in states_of(answer.iter_lines()):
            states.append(state)
            if state == (2, "queued"):
                ledger.request_cancel(job["id"])
    assert states == [(run, state) for run in (1, 2) for state in ("queued", "cancelled")]


def test_many_waiting_clients_leave_room_for_others(
    live: httpx.Client, body: dict[str, Any]
) -> None:
    """Waiting holds no thread: more clients than the thread pool has threads."""
    job = live.post(JOBS, json=body).json()

    def wait() -> None:
        headers = {**live.headers, "Prefer": "wait=50"}
        httpx.get(live.base_url.join(job["links"]["self"]), headers=headers, timeout=60)

    waiting = [threading.Thread(target=wait) for _ in range(60)]
    for thread in waiting:
        thread.start()
    # Long before the first of them has its answer.
    assert live.get(JOBS, timeout=30).status_code == 200
    assert live.post(job["links"]["cancel"], timeout=30).status_code == 200
    for thread in waiting:
        thread.join()


def streaming(live: httpx.Client, job: dict[str, Any], stack: ExitStack) -> httpx.Response:
    """A stream that is open, or the answer that refuses it."""
    request = live.stream("GET", job["links"]["events"], headers=SSE, timeout=10)
    return stack.enter_context(request)


@pytest.fixture
def few(settings: Settings) -> Settings:
    """One tenant may hold two answers, all together three."""
    return settings.model_copy(update={"limits": TenantLimits(event_streams=2), "event_streams": 3})


@pytest.fixture
def crowded(
    few: Settings, flush: redis.Redis, inspectors: Inspectors, keys: dict[str, str]
) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with (
        served(create_app(few, inspectors)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client,
    ):
        yield client


def test_streams_are_limited(
    crowded: httpx.Client, keys: dict[str, str], body: dict[str, Any], tmp_path: Path
) -> None:
    """Of a tenant with 429, of all with 503; whoever leaves makes room."""
    job = crowded.post(JOBS, json=body).json()
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    body["output"]["uri_prefix"] = str(tmp_path / "theirs")
    theirs = crowded.post(JOBS, json=body, headers=rival).json()
    with ExitStack() as stack:
        mine = [streaming(crowded, job, stack) for _ in range(3)]
        assert [answer.status_code for answer in mine] == [200, 200, 429]
        assert json.loads(mine[2].read())["code"] == "too_many_streams"
        assert mine[2].headers["Retry-After"].isdigit()
        events_url, sent = theirs["links"]["events"], {**SSE, **rival}
        with (
            crowded.stream("GET", events_url, headers=sent, timeout=10) as first,
            crowded.stream("GET", events_url, headers=sent, timeout=10) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 503)
            assert json.loads(second.read())["code"] == "too_many_streams"
        # A request that may not wait is answered, only not held.
        answer = crowded.get(job["links"]["self"], headers={"Prefer": "wait=60"}, timeout=10)
        assert (answer.status_code, answer.json()["state"]) == (200, "queued")
        assert "Preference-Applied" not in answer.headers
    until = time.monotonic() + 10
    while True:
        with ExitStack() as stack:
            if streaming(crowded, job, stack).status_code == 200:
                return
        assert time.monotonic() < until


def test_requests_of_one_tenant_leave_threads_for_others(
    live: httpx.Client,
    app: FastAPI,
    keys: dict[str, str],
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More slow requests than there are threads."""
    job = live.post(JOBS, json=body).json()
    go_on = threading.Event()
    ledger = app.state.services.ledger

    def slow(*_: object) -> list[Any]:
        go_on.wait(30)
        return []

    monkeypatch.setattr(ledger, "logs", slow)
    statuses: list[int] = []

    def ask() -> None:
        url = live.base_url.join(job["links"]["logs"])
        statuses.append(httpx.get(url, headers=live.headers, timeout=60).status_code)

    asking = [threading.Thread(target=ask) for _ in range(60)]
    for thread in asking:
        thread.start()
    try:
        rival = {"Authorization": f"Bearer {keys['rival']}"}
        for _ in range(3):
            assert live.get(JOBS, headers=rival, timeout=20).status_code == 200
        assert statuses == []
    finally:
        go_on.set()
        for thread in asking:
            thread.join()
    assert statuses == [200] * 60
