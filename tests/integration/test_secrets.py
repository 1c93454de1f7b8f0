"""No secret ends up in logs, reports, errors, events, storage, Redis or the broker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from embedded.processes import wait_until
from embedded.stack import STATE_BUCKET, WORK_BUCKET, Stack
from strucprune_core.client import Job, StrucPruneClient
from strucprune_core.client.calls import JOBS
from tests.conftest import WEBHOOK_SECRET
from tests.integration.conftest import MakeSpec
from tests.support.hub_server import Hub

pytestmark = pytest.mark.services

# What receivers like to put into URLs.
URL_TOKEN = "canary-of-the-webhook-url"
WRONG_KEY = "spk_canary-of-a-wrong-key"


@pytest.fixture
def receiver() -> Iterator[tuple[int, list[str]]]:
    """Port of a webhook receiver, and the paths that were asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            paths.append(self.path)
            self.send_response(500 if len(paths) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_address[1], paths
    server.shutdown()
    thread.join()
    server.server_close()


def test_secrets_stay_where_they_are(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    receiver: tuple[int, list[str]],
    hub_of_the_stack: Hub,
    tiny_model: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    port, told = receiver
    canaries = {
        "API key": stack.api_key,
        "pepper": stack._pepper,
        "S3 secret": stack.s3.secret_access_key,
        "Redis password": stack.valkey._password,
        "webhook secret": WEBHOOK_SECRET.removeprefix("whsec_"),
        "webhook URL": URL_TOKEN,
        "wrong key": WRONG_KEY,
        "hub token": next(iter(hub_of_the_stack.tokens)),
    }
    spec, failing = make_spec(), make_spec()
    hub_of_the_stack.add("acme/secrets", tiny_model, private=True)
    spec["model"]["uri"] = "hf://acme/secrets"
    spec["notifications"] = {"webhook_url": f"http://127.0.0.1:{port}/{URL_TOKEN}"}
    s3 = stack.s3.client()
    s3.put_object(Bucket=WORK_BUCKET, Key="secrets/text.txt", Body=text_file.read_bytes())
    failing["calibration"]["uri"] = f"s3://{WORK_BUCKET}/secrets/text.txt"
    job, failed = client.submit(spec), client.submit(failing)
    s3.delete_object(Bucket=WORK_BUCKET, Key="secrets/text.txt")  # while the other one runs
    assert client.wait(job.id).state == "succeeded"
    assert client.wait(failed.id).state == "failed"
    client.download(job.id, tmp_path / "result")
    wait_until(lambda: len(told) == 2, "the job's end was told", timeout_seconds=30)

    seen = {f"answer {number}": text for number, text in enumerate(_answers(stack, job, failed))}
    for path in (*stack.log_directory.iterdir(), *(tmp_path / "result").iterdir()):
        seen[path.name] = path.read_bytes()
    for bucket in (STATE_BUCKET, WORK_BUCKET):
        seen |= _objects(stack, bucket, "")
    seen |= _redis(stack)
    seen |= _commands(stack)
    assert len(seen) > 50
    found = [
        (name, place)
        for name, canary in canaries.items()
        for place, data in seen.items()
        if canary.encode() in data
    ]
    # The URL stays where it is needed: the job may be retried, and its end is told again then.
    ((name, place),) = found
    assert name == "webhook URL"
    assert place.startswith(f"s3://{STATE_BUCKET}/state/webhooks/{job.id}/")
    # And the search finds what is there.
    assert any(job.id.encode() in data for data in seen.values())
    assert job.id.encode() in seen["reconciler.log"] + seen["worker-0.log"]


def _answers(stack: Stack, *jobs: Job) -> Iterator[bytes]:
    """Everything that the API says of jobs, and of requests that are wrong."""
    with stack.http() as http:
        for job in jobs:
            here = f"{JOBS}/{job.id}"
            yield http.get(here).content
            for name in ("events", "report", "artifacts"):
                yield http.get(f"{here}/{name}").content
            yield http.get(f"{here}/report", params={"format": "html"}).content
        for body in ({}, {"notifications": {"webhook_url": f"ftp://x/{URL_TOKEN}"}}):
            yield _without_inputs(http.post(JOBS, json=body))
        yield http.get("/v1/capabilities").content
        yield http.get("/openapi.json").content
    for path in (JOBS, f"{JOBS}/job_x", "/readyz"):
        headers = {"Authorization": f"Bearer {WRONG_KEY}"}
        yield httpx.get(f"{stack.api_url}{path}", headers=headers).content


def _without_inputs(response: httpx.Response) -> bytes:
    assert response.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    return response.content


def _objects(stack: Stack, bucket: str, prefix: str) -> dict[str, bytes]:
    s3 = stack.s3.client()
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            body = s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"]
            found[f"s3://{bucket}/{entry['Key']}"] = body.read()
    return found


def _redis(stack: Stack) -> dict[str, bytes]:
    """Every value in Redis, the broker's queues among them, as it is serialised."""
    with redis.Redis.from_url(stack.valkey.url) as client:
        found = {}
        for key in client.scan_iter(count=1000):
            # Serialised strings of more than 20 bytes may be packed; those of lists and hashes too.
            found[f"redis {key.decode()}"] = repr(_value(client, key)).encode()
        return found


def _value(client: Any, key: bytes) -> Any:
    match client.type(key):
        case b"string":
            return client.get(key)
        case b"hash":
            return client.hgetall(key)
        case b"list":
            return client.lrange(key, 0, -1)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1)
        case b"stream":
            return client.xrange(key)
        case _:
            return None


def _commands(stack: Stack) -> dict[str, bytes]:
    """Command lines, which every user of a machine can read."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue  # it has ended
        if b"worker" in command or b"api" in command or b"valkey" in command or b"weed" in command:
            found[f"command {path.parent.name}"] = command
    return found
