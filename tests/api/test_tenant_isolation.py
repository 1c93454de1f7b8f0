"""No route shows or changes another tenant's jobs. A new route fails here until it has a kind.

The kinds are in `tests.support.routes`; each has a test here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from api.jobs.job_reads import JobReads
from api.jobs.ledger import Ledger
from api.services import Services
from strucprune_core.storage.local import LocalStore
from tests.support.routes import KINDS, Kind, elsewhere, submit

NOBODYS_JOB = "job_" + "0" * 32


def of_kind(*kinds: Kind) -> Callable[..., Any]:
    found = [place for place, kind in KINDS.items() if kind in kinds]
    return pytest.mark.parametrize(("method", "path"), found, ids=map(" ".join, found))


def routes(found: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those that OpenAPI does not show included."""
    for route in found:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or () if method != "HEAD")
        elif isinstance(router := getattr(route, "original_router", None), APIRouter):
            yield from routes(router.routes)
        else:
            # The static files of /docs; what else is mounted must not go unseen.
            assert isinstance(route, Mount)
            assert isinstance(route.app, StaticFiles)


def call(client: TestClient, method: str, path: str, key: str | None, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {"Authorization": ""}
    return client.request(method, path, headers=headers, **more)


def test_every_route_is_in_the_table(client: TestClient) -> None:
    there = {
        (method, path)
        for method, path in routes(client.app.routes)  # type: ignore[attr-defined]
    }
    assert there == set(KINDS)


@of_kind("common", "own", "list", "create", "figures", "operator")
@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_a_key_there_is_nothing(
    client: TestClient, method: str, path: str, key: str | None
) -> None:
    answer = call(client, method, path.format(job_id=NOBODYS_JOB), key)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@of_kind("open")
def test_what_is_open_tells_of_no_tenant(
    client: TestClient, body: dict[str, Any], method: str, path: str
) -> None:
    job = submit(client, body)
    answer = call(client, method, path.replace("{name}", "app.js"), None)
    assert answer.status_code == 200
    assert job["id"] not in answer.text
    assert "acme" not in answer.text


@of_kind("common")
def test_what_is_common_is_the_same_for_all(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], method: str, path: str
) -> None:
    job = submit(client, elsewhere(body))
    more = {"json": body} if method == "POST" else {}
    mine = call(client, method, path, keys["acme"], **more)
    theirs = call(client, method, path, keys["rival"], **more)
    assert mine.status_code == 200
    assert mine.content == theirs.content
    assert job["id"] not in theirs.text


@of_kind("own")
def test_anothers_job_does_not_exist(
    client: TestClient,
    services: Services,
    keys: dict[str, str],
    body: dict[str, Any],
    method: str,
    path: str,
) -> None:
    """The answer is that for a job that nobody has, so it does not even tell that there is one."""
    job = submit(client, body)
    before = services.ledger.get(job["id"])
    request_id = {"X-Request-ID": "the-same-id"}
    rival = {"Authorization": f"Bearer {keys['rival']}", **request_id}
    refused, unknown = (
        client.request(method, path.format(job_id=job_id), headers=rival)
        for job_id in (job["id"], NOBODYS_JOB)
    )
    assert (refused.status_code, refused.json()["code"]) == (404, "job_not_found")
    assert refused.content == unknown.content
    assert dict(refused.headers) == dict(unknown.headers)
    assert services.ledger.get(job["id"]) == before
    # And to its owner it does exist: this test could fail.
    assert call(client, method, path.format(job_id=job["id"]), keys["acme"]).status_code != 404


@of_kind("list")
def test_lists_show_the_callers_own(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], method: str, path: str
) -> None:
    jobs = [submit(client, elsewhere(body)) for _ in range(2)]
    page = call(client, method, path, keys["acme"], params={"limit": 1}).json()
    assert [job["id"] for job in page["data"]] == [jobs[1]["id"]]
    for params in ({}, {"cursor": page["next_cursor"]}, {"label": "team=nlp"}, {"state": "queued"}):
        theirs = call(client, method, path, keys["rival"], params=params)
        assert theirs.json() == {"data": [], "next_cursor": None}


@of_kind("figures")
def test_figures_are_of_the_callers_tenant(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], method: str, path: str
) -> None:
    before = call(client, method, path, keys["rival"]).json()
    submit(client, body)
    assert call(client, method, path, keys["rival"]).json() == before
    assert call(client, method, path, keys["acme"]).json() != before


@of_kind("operator")
def test_what_is_for_operators_needs_their_scope(
    client: TestClient, keys: dict[str, str], method: str, path: str
) -> None:
    for name in ("acme", "acme-reader"):
        answer = call(client, method, path, keys[name])
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert call(client, method, path, keys["operator"]).status_code == 200


@of_kind("create")
def test_what_is_created_is_the_callers(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], method: str, path: str
) -> None:
    """Also under the same idempotency key, which is a tenant's own."""
    once = {"Idempotency-Key": "the-same-key"}
    mine, theirs = (
        client.request(
            method,
            path,
            json=elsewhere(body),
            headers={"Authorization": f"Bearer {keys[name]}", **once},
        )
        for name in ("acme", "rival")
    )
    assert mine.status_code == theirs.status_code == 202
    assert mine.json()["id"] != theirs.json()["id"]
    assert "Idempotency-Replayed" not in theirs.headers


@of_kind("create")
def test_who_may_only_read_creates_nothing(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], method: str, path: str
) -> None:
    answer = call(client, method, path, keys["acme-reader"], json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


@of_kind("own")
def test_who_may_only_read_changes_nothing(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], method: str, path: str
) -> None:
    if method == "GET":
        return
    job = submit(client, body)
    answer = call(client, method, path.format(job_id=job["id"]), keys["acme-reader"])
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


def noting(calls: list[str], name: str, found: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **more: Any) -> Any:
        calls.append(name)
        return found(*arguments, **more)

    return noted


@of_kind("own")
def test_anothers_job_takes_the_same_calls_as_none(
    client: TestClient,
    keys: dict[str, str],
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
) -> None:
    """So that the time of an answer does not tell that there is one."""
    job = submit(client, body)
    calls: list[str] = []
    watched: dict[type, tuple[str, ...]] = {
        JobReads: ("get", "events_after"),
        Ledger: ("get", "create", "events", "logs", "list", "request_cancel", "forget"),
        LocalStore: ("list", "read", "stat", "put_if_absent", "delete"),
    }
    for owner, names in watched.items():
        for name in names:
            monkeypatch.setattr(owner, name, noting(calls, name, getattr(owner, name)))
    seen = []
    for job_id in (job["id"], NOBODYS_JOB):
        calls.clear()
        answer = call(client, method, path.format(job_id=job_id), keys["rival"])
        assert answer.status_code == 404
        seen.append(list(calls))
    assert seen[0] == seen[1] != []
