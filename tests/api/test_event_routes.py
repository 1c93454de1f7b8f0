from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.jobs.ledger import connect
from api.routes import events
from api.settings import Settings
from tests.api.serving import served
from tests.api.test_job_routes import JOBS, submit
from tests.support.claims import claim_job

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
def app(settings: Settings, flush: redis.Redis) -> FastAPI:
    return create_app(settings)


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
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)
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
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)
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
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)
    ledger = app.state.services.ledger
    job = live.post(JOBS, json=body).json()
    live.post(job["links"]["cancel"])
    read = ledger.events

    def retried(*arguments: Any) -> Any:
        monkeypatch.setattr(ledger, "events", read)
        ledger.reopen(job["id"], 1)
        return read(*arguments)

    monkeypatch.setattr(ledger, "events", retried)
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
