"""A short, seeded part of `make contract`: every route, all checks, few examples of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.app import create_app
from api.settings import Settings
from embedded.valkey import ValkeyServer
from strucprune_core.access.keys import new_key
from tests.contract.run import PEPPER, run, settings

# A database of our own, so that flushing it hurts no other test package.
DATABASE = 8
KEY = new_key(PEPPER)
# A request may take long on a machine with other work; alone the whole test takes some ten seconds.
OPTIONS = ("--max-examples", "3", "--seed", "1", "--request-timeout", "60")


@pytest.fixture
def known(valkey_server: ValkeyServer, tmp_path: Path) -> Settings:
    url = f"{valkey_server.url.rsplit('/', 1)[0]}/{DATABASE}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return settings(tmp_path, url, KEY)


@pytest.mark.services
def test_every_answer_is_as_the_document_says(
    known: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = run(create_app(known), KEY, tmp_path, OPTIONS)
    told = capfd.readouterr().out
    assert status == 0, told
    operations = sum(len(verbs) for verbs in create_app(known).openapi()["paths"].values())
    assert f"Tested: {operations}" in told


def _of_another_type(_: Request) -> Response:
    return JSONResponse({"status": 1})


def _of_another_status(_: Request) -> Response:
    return JSONResponse({"status": "ok"}, 418)


def _with_a_crash(_: Request) -> Response:
    raise RuntimeError


@pytest.mark.services
@pytest.mark.parametrize("answer", [_of_another_type, _of_another_status, _with_a_crash])
def test_an_answer_that_is_not_is_seen(
    known: Settings, tmp_path: Path, answer: Callable[[Request], Response]
) -> None:
    app: FastAPI = create_app(known)
    app.router.routes.insert(0, Route("/healthz", answer))
    only = ("--include-path", "/healthz", "--phases", "examples,coverage")
    assert run(app, KEY, tmp_path, [*OPTIONS, *only]) == 1
