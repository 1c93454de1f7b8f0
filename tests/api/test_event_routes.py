from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.jobs.ledger import connect
from api.routes import events
from api.settings import Settings
from tests.api.serving import served
from tests.api.test_job_routes import JOBS, submit

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
def live(settings: Settings, flush: redis.Redis, keys: dict[str, str]) -> Iterator[httpx.Client]:
    """The app behind a real server: the test client does not stream."""
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with (
        served(create_app(settings)) as port,
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
                    ledger.claim(job["id"], "w", 60)
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
