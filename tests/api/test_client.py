"""Both Python clients against the real app on a real server, with Valkey and S3 behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis
from fastapi import FastAPI
from typer.testing import CliRunner, Result

from api import event_feed, problems
from api.app import create_app
from api.jobs import sequel
from api.jobs.job_reads import JobReads
from api.jobs.ledger import LedgerUnavailable
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.routes import jobs
from api.services import Services
from api.settings import ApiKey, Settings
from embedded.s3 import S3Server
from strucprune_core.access.keys import hash_key
from strucprune_core.client import (
    AsyncStrucPruneClient,
    ClientError,
    DownloadFailed,
    JobConflict,
    JobNotFound,
    NotAllowed,
    RequestInvalid,
    ServiceUnavailable,
    StrucPruneClient,
    Unreachable,
    WaitTimeout,
    calls,
)
from strucprune_core.client.sse import Decoder, Message
from strucprune_core.commands.jobs.service import complete_id
from strucprune_core.commands.main import app as cli
from strucprune_core.errors import InvalidSpec
from strucprune_core.run.workspace import OWNER
from strucprune_core.spec import JobSpec
from strucprune_core.storage.s3_settings import S3Settings
from tests.api.conftest import PEPPER
from tests.support.claims import claim_job
from tests.support.flaky_proxy import FlakyProxy
from tests.support.routes import elsewhere
from tests.support.serving import served

WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: several chunks


class Awaited:
    """The async client, called as the one that blocks."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncStrucPruneClient(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **more: Any) -> Any:
            made = method(*arguments, **more)
            if hasattr(made, "__aiter__"):
                return self._all(made)
            return self._loop.run_until_complete(made)

        return call

    def _all(self, made: Any) -> Iterator[Any]:
        while True:
            try:
                yield self._loop.run_until_complete(anext(made))
            except StopAsyncIteration:
                return

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


Make = Callable[..., StrucPruneClient]


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    name = f"client-{uuid4().hex}"
    s3_server.create_bucket(name)
    return name


@pytest.fixture
def prefix(bucket: str) -> str:
    return f"s3://{bucket}/{uuid4().hex}"


@pytest.fixture(scope="module")
def store_proxy(s3_server: S3Server) -> Iterator[FlakyProxy]:
    """What stands between everybody and S3."""
    with FlakyProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def app(
    redis_url: str, keys: dict[str, str], s3_server: S3Server, store_proxy: FlakyProxy, bucket: str
) -> FastAPI:
    s3 = S3Settings(
        endpoint_url=f"http://127.0.0.1:{store_proxy.port}",
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    return create_app(
        Settings(
            redis_url=redis_url,
            state_uri=f"s3://{bucket}/state",
            s3=s3,
            key_pepper=PEPPER,
            api_keys=(
                ApiKey(tenant="acme", key_hmac=hash_key(keys["acme"], PEPPER)),
                ApiKey(
                    tenant="operations",
                    scopes=frozenset({"admin"}),
                    key_hmac=hash_key(keys["operator"], PEPPER),
                ),
            ),
            allow_local_files=True,
        )
    )


@pytest.fixture(scope="module")
def server(app: FastAPI) -> Iterator[FlakyProxy]:
    with served(app) as port, FlakyProxy(port) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: FlakyProxy, flush: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> FlakyProxy:
    """What stands between the client and the service, which has no jobs."""
    monkeypatch.setattr(event_feed, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)
    return server


@pytest.fixture(params=[StrucPruneClient, Awaited], ids=["sync", "async"])
def make(request: pytest.FixtureRequest, proxy: FlakyProxy, keys: dict[str, str]) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(key: str = keys["acme"], **more: Any) -> Any:
            url = f"http://127.0.0.1:{proxy.port}"
            return stack.enter_context(request.param(url, key, **{"retry_seconds": 10, **more}))

        yield make


@pytest.fixture
def client(make: Make) -> StrucPruneClient:
    return make()


@pytest.fixture
def services(app: FastAPI, proxy: FlakyProxy) -> Services:
    found: Services = app.state.services
    return found


def finish(services: Services, job_id: str, state: JobState = JobState.SUCCEEDED) -> None:
    claim = claim_job(services.ledger, job_id, "w", 60)
    assert isinstance(claim, Claim)
    services.ledger.finish(job_id, claim.fence, state)  # type: ignore[arg-type]


def test_the_life_of_a_job(
    client: StrucPruneClient, services: Services, body: dict[str, Any]
) -> None:
    spec = JobSpec.model_validate(body)
    assert client.validate(spec).valid
    job = client.submit(spec)
    assert (job.state, job.labels, job.spec["pruning"]["sparsity"]) == (
        "queued",
        {"team": "nlp"},
        0.25,
    )
    assert client.get(job.id).model_copy(update={"queue": None}) == job
    assert client.pause(job.id).state == "paused"
    assert client.resume(job.id).state == "queued"
    finish(services, job.id)
    ended = client.get(job.id)
    assert ended.ended
    assert ended.finished_at is not None
    with pytest.raises(JobConflict) as caught:
        client.cancel(job.id)
    assert caught.value.problem.code == "state_conflict"


def test_what_follows_the_end_of_a_job(
    client: StrucPruneClient, services: Services, body: dict[str, Any], proxy: FlakyProxy
) -> None:
    job = client.submit(body)
    for early in (client.retry, client.delete):
        with pytest.raises(JobConflict):
            early(job.id)
    finish(services, job.id, JobState.FAILED)
    retried = client.retry(job.id)
    assert (retried.state, retried.run) == ("queued", 2)
    client.cancel(job.id)
    proxy.cut(0, 40)  # the job is gone, and the answer that says so is lost
    client.delete(job.id)
    for late in (client.get, client.retry, client.delete):
        with pytest.raises(JobNotFound):
            late(job.id)


@pytest.mark.parametrize("outputs", [False, True])
def test_delete_with_outputs(
    client: StrucPruneClient, services: Services, body: dict[str, Any], prefix: str, outputs: bool
) -> None:
    body["output"]["uri_prefix"] = f"{prefix}/out"
    job = client.submit(body)
    finish(services, job.id, JobState.FAILED)
    asked: list[bool] = []

    def delete(*arguments: Any, **more: Any) -> bool:
        asked.append(more["outputs"])
        return sequel.delete(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.routes.control.delete", delete)
        client.delete(job.id, outputs=outputs)
    assert asked == [outputs]


def log(services: Services, job_id: str, count: int) -> None:
    claim = claim_job(services.ledger, job_id, "w", 60)
    assert isinstance(claim, Claim)
    lines = [
        {"at": 1.0, "run": 1, "attempt": 1, "level": "INFO", "message": f"line {number}"}
        for number in range(count)
    ]
    services.ledger.append_logs(job_id, claim.fence, lines)


def test_logs_go_over_pages(
    client: StrucPruneClient,
    services: Services,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "LOG_PAGE_SIZE", 2)
    job = client.submit(body)
    assert list(client.logs(job.id)) == []
    log(services, job.id, 5)
    lines = list(client.logs(job.id))
    assert [line.message for line in lines] == [f"line {number}" for number in range(5)]
    assert list(client.logs(job.id, after=lines[2].id)) == lines[3:]
    with pytest.raises(JobNotFound):
        next(iter(client.logs("job_" + "0" * 32)))


def test_what_is_wrong_is_typed(client: StrucPruneClient, make: Make, body: dict[str, Any]) -> None:
    body["pruning"] = {"sparsity": 2, "oddity": 1}
    with pytest.raises(RequestInvalid) as caught:
        client.submit(body)
    pointers = {error.pointer for error in caught.value.problem.errors}
    assert pointers == {"/pruning/sparsity", "/pruning/oddity"}
    assert "/pruning/sparsity: " in str(caught.value)
    shown = caught.value.as_dict()
    assert (shown["code"], shown["status"]) == ("validation_failed", 422)
    assert shown["request_id"]
    with pytest.raises(JobNotFound):
        client.get("job_" + "0" * 32)
    for hostile in ("../capabilities", "a/b", "", "job_é", "x?y"):
        with pytest.raises(JobNotFound):
            client.get(hostile)
    with pytest.raises(NotAllowed):
        make("spk_wrong").get("job_" + "0" * 32)


def test_list_goes_over_pages(
    client: StrucPruneClient, services: Services, body: dict[str, Any]
) -> None:
    ids = [client.submit(elsewhere(body)).id for _ in range(5)]
    assert [job.id for job in client.list(page_size=2)] == ids[::-1]
    finish(services, ids[0])
    assert [job.id for job in client.list(state="succeeded")] == [ids[0]]
    assert list(client.list(label="team=other")) == []
    now = datetime.now(UTC)
    assert list(client.list(created_after=now + timedelta(hours=1))) == []
    assert len(list(client.list(created_before=now + timedelta(hours=1)))) == 5


def test_what_a_tenant_has_of_its_limits(
    client: StrucPruneClient,
    make: Make,
    services: Services,
    keys: dict[str, str],
    body: dict[str, Any],
) -> None:
    services.ledger.note_worker("one:1", {"host": "one"})
    job = client.submit(body)
    place = client.get(job.id).queue
    assert place is not None
    assert (place.position, place.waits_for, place.workers) == (1, "turn", 1)
    quota = client.quota()
    assert (quota.use["open_jobs"], quota.limits["open_jobs"]) == (1, None)
    with pytest.raises(NotAllowed):
        client.workers()
    (worker,) = make(keys["operator"]).workers()
    assert (worker.name, worker.host, worker.device) == ("one:1", "one", None)


def test_models_are_found_by_the_beginning_of_their_uri(
    client: StrucPruneClient, body: dict[str, Any]
) -> None:
    uri = body["model"]["uri"]
    assert client.models(uri[:-1]) == [uri]
    assert client.models(uri[:-1] + "-none") == []


def test_a_submission_whose_answer_got_lost_is_one_job(
    client: StrucPruneClient, proxy: FlakyProxy, body: dict[str, Any]
) -> None:
    proxy.cut(0, 40)
    job = client.submit(body)
    assert [found.id for found in client.list()] == [job.id]
    assert proxy.connections >= 3


def test_a_key_of_ones_own_makes_the_same_job_from_anywhere(
    make: Make, body: dict[str, Any]
) -> None:
    key = f"nightly-{uuid4()}"
    first = make().submit(body, idempotency_key=key)
    assert make().submit(body, idempotency_key=key).id == first.id
    assert make().submit(elsewhere(body)).id != first.id


def test_wait_tells_of_changes(
    client: StrucPruneClient, services: Services, body: dict[str, Any], proxy: FlakyProxy
) -> None:
    job = client.submit(body)
    seen: list[str] = []

    def live(changed: Any) -> None:
        seen.append(changed.state)
        if changed.state == "queued":
            proxy.cut(0)  # a long-poll that breaks
            threading.Timer(0.2, services.ledger.claim, ("w", 60)).start()
        elif changed.state == "running":
            services.ledger.request_cancel(job.id)
        elif changed.state == "cancelling":
            record = services.ledger.get(job.id)
            assert record is not None
            services.ledger.release(job.id, record.fence)

    assert client.wait(job.id, on_change=live).state == "cancelled"
    assert seen == ["queued", "running", "cancelling", "cancelled"]


def test_wait_for_so_long(client: StrucPruneClient, body: dict[str, Any]) -> None:
    job = client.submit(body)
    with pytest.raises(WaitTimeout):
        client.wait(job.id, timeout_seconds=0.5)


def test_events_over_streams_that_break(
    client: StrucPruneClient, services: Services, body: dict[str, Any], proxy: FlakyProxy
) -> None:
    """None is missed, none comes twice, whatever the connections do."""
    job = client.submit(body)
    for _ in range(30):
        claim = claim_job(services.ledger, job.id, "w", 60)
        assert isinstance(claim, Claim)
        services.ledger.release(job.id, claim.fence)
    later = threading.Timer(0.5, finish, (services, job.id))
    later.start()
    whole = services.ledger.events(job.id, "0", 1000)
    proxy.cut(3000, 0, 1500)
    found = list(client.events(job.id))
    later.join()
    assert [event.id for event in found][: len(whole)] == [event.id for event in whole]
    assert len({event.id for event in found}) == len(found)
    assert found[-1].data["state"] == "succeeded"
    rest = list(client.events(job.id, after=found[-3].id))
    assert rest == found[-2:]
    assert list(client.events(job.id, after=found[-1].id)) == []


@pytest.mark.parametrize("broken", [False, True])
def test_events_of_a_retried_job_go_on_to_the_end_of_its_last_run(
    client: StrucPruneClient,
    services: Services,
    body: dict[str, Any],
    proxy: FlakyProxy,
    broken: bool,
) -> None:
    job = client.submit(body)
    finish(services, job.id, JobState.FAILED)
    client.retry(job.id)
    if broken:
        proxy.cut(900)  # somewhere in what was told before
    later = threading.Timer(0.5, finish, (services, job.id))
    later.start()
    found = [(event.data["run"], event.data["state"]) for event in client.events(job.id)]
    later.join()
    assert found == [
        (1, "queued"),
        (1, "running"),
        (1, "failed"),
        (2, "queued"),
        (2, "running"),
        (2, "succeeded"),
    ]


def test_events_of_a_job_that_is_retried_as_its_end_is_told(
    client: StrucPruneClient, services: Services, body: dict[str, Any]
) -> None:
    job = client.submit(body)
    finish(services, job.id, JobState.FAILED)
    found: list[tuple[int, str]] = []
    for event in client.events(job.id):
        found.append((event.data["run"], event.data["state"]))
        if found == [(1, "queued"), (1, "running"), (1, "failed")]:
            client.retry(job.id)
            threading.Timer(0.5, finish, (services, job.id)).start()
    assert found[-1] == (2, "succeeded")
    assert len(found) == 6


def test_events_of_a_job_cost_one_look_at_it_at_the_end(
    client: StrucPruneClient, services: Services, body: dict[str, Any]
) -> None:
    job = client.submit(body)
    for _ in range(20):
        claim = claim_job(services.ledger, job.id, "w", 60)
        assert isinstance(claim, Claim)
        services.ledger.release(job.id, claim.fence)
    finish(services, job.id)
    asked: list[str] = []

    def note(request: httpx.Request) -> None:
        asked.append(request.url.path.rpartition("/")[2])

    async def note_too(request: httpx.Request) -> None:
        note(request)

    if isinstance(client, StrucPruneClient):
        client._http.event_hooks = {"request": [note]}
    else:
        client._client._http.event_hooks = {"request": [note_too]}
    assert len(list(client.events(job.id))) == 43
    assert asked == ["events", job.id, "events"]


def test_events_of_a_job_that_is_deleted_once_it_is_over(
    client: StrucPruneClient, services: Services, body: dict[str, Any]
) -> None:
    job = client.submit(body)
    finish(services, job.id)
    found: list[str] = []
    for event in client.events(job.id):
        found.append(event.data["state"])
        if event.ends_run:
            client.delete(job.id)
    assert found == ["queued", "running", "succeeded"]


def test_events_of_a_job_that_does_not_exist(client: StrucPruneClient) -> None:
    with pytest.raises(JobNotFound):
        next(iter(client.events("job_" + "0" * 32)))


@pytest.fixture
def result(client: StrucPruneClient, services: Services, body: dict[str, Any], prefix: str) -> str:
    """Id of a job that has published three files."""
    body["output"]["uri_prefix"] = f"{prefix}/out"
    job = client.submit(body)
    publish(services, prefix, {"model.safetensors": WEIGHTS, "gguf/model.gguf": b"x", "e": b""})
    finish(services, job.id)
    return job.id


def publish(services: Services, prefix: str, files: dict[str, bytes]) -> None:
    store = services.stores.open(f"{prefix}/out")
    for name, data in {"report.html": b"<html>", **files}.items():
        store.put(name, data)
    store.put("report.json", b'{"schema_version": "1.0"}')
    entries = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    store.put("strucprune.json", json.dumps({"format_version": 1, "files": entries}).encode())


def test_more_files_than_a_page_has(
    client: StrucPruneClient, services: Services, result: str, prefix: str, tmp_path: Path
) -> None:
    files = {f"part-{number:03}": str(number).encode() for number in range(250)}
    publish(services, prefix, files)
    names = [file.name for file in client.artifacts(result)]
    assert names == [*files, "strucprune.json"]
    assert all(file.url for file in client.artifacts(result, presign=True))
    paths = client.download(result, tmp_path / "d")
    assert [path.name for path in paths] == names
    assert (tmp_path / "d/part-249").read_bytes() == b"249"


def test_results(client: StrucPruneClient, result: str, tmp_path: Path) -> None:
    assert client.report(result) == {"schema_version": "1.0"}
    assert client.report_html(result) == "<html>"
    assert all(file.url is None for file in client.artifacts(result))
    told: dict[str, tuple[int, int]] = {}
    paths = client.download(
        result,
        tmp_path / "d",
        on_bytes=lambda name, here, total: told.update({name: (here, total)}),
    )
    names = [str(path.relative_to(tmp_path / "d")) for path in paths]
    assert names == ["model.safetensors", "gguf/model.gguf", "e", "strucprune.json"]
    assert paths[0].read_bytes() == WEIGHTS
    assert paths[2].read_bytes() == b""
    assert told["model.safetensors"] == (len(WEIGHTS), len(WEIGHTS))
    assert not list(tmp_path.rglob("*.part"))


def test_a_download_goes_on_where_it_broke(
    client: StrucPruneClient, result: str, tmp_path: Path, store_proxy: FlakyProxy
) -> None:
    steps: list[int] = []

    def told(name: str, here_bytes: int, total_bytes: int) -> None:
        if name == "model.safetensors":
            steps.append(here_bytes)

    before = store_proxy.connections
    client.report(result)  # the service's own connections are made
    store_proxy.cut(0, 3_000_000, 1_200_000)
    paths = client.download(result, tmp_path, on_bytes=told)
    assert paths[0].read_bytes() == WEIGHTS
    assert steps == sorted(steps)  # never from the beginning again
    assert store_proxy.connections - before >= 3
    made = store_proxy.connections
    steps.clear()
    client.download(result, tmp_path, on_bytes=told)  # all there: nothing is fetched
    assert steps == [len(WEIGHTS)]
    assert store_proxy.connections <= made + 1


@pytest.mark.parametrize("part", [WEIGHTS[:1000], b"other" * 1000, WEIGHTS, WEIGHTS + b"more"])
def test_a_part_that_is_there(
    client: StrucPruneClient, result: str, tmp_path: Path, part: bytes
) -> None:
    """Whatever lies there, the file is right in the end."""
    (tmp_path / "model.safetensors.part").write_bytes(part)
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/model.gguf").write_bytes(b"y")
    paths = client.download(result, tmp_path)
    assert paths[0].read_bytes() == WEIGHTS
    assert paths[1].read_bytes() == b"x"


def test_a_file_that_was_changed_is_refused(
    client: StrucPruneClient, result: str, services: Services, prefix: str, tmp_path: Path
) -> None:
    changed = bytes(len(WEIGHTS))
    services.stores.open(f"{prefix}/out").put("model.safetensors", changed)
    with pytest.raises(DownloadFailed, match="not the file that the job wrote"):
        client.download(result, tmp_path)
    assert not list(tmp_path.iterdir())
    services.stores.open(f"{prefix}/out").put("model.safetensors", changed + b"more")
    with pytest.raises(DownloadFailed, match="more than"):
        client.download(result, tmp_path)
    services.stores.open(f"{prefix}/out").delete("model.safetensors")
    with pytest.raises(DownloadFailed, match="404"):
        client.download(result, tmp_path)


def test_names_lead_nowhere_else(
    client: StrucPruneClient, result: str, services: Services, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/link").symlink_to(tmp_path)
    publish(services, prefix, {"link/escaped": b"x"})
    with pytest.raises(DownloadFailed, match="leads out"):
        client.download(result, tmp_path / "d")
    assert not (tmp_path / "escaped").exists()


def test_a_service_that_is_down(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again for as long as allowed, then typed."""
    asked: list[str] = []

    def down(reads: object, job_id: str) -> None:
        asked.append(job_id)
        raise LedgerUnavailable("down")

    monkeypatch.setattr(problems, "RETRY_AFTER_SECONDS", 0)
    monkeypatch.setattr(JobReads, "get", down)
    with pytest.raises(ServiceUnavailable) as caught:
        make(retry_seconds=0.3).get("job_" + "0" * 32)
    assert caught.value.problem.code == "ledger_unavailable"
    assert len(asked) > 1


@pytest.mark.parametrize("kind", [StrucPruneClient, Awaited], ids=["sync", "async"])
def test_no_service(kind: Any) -> None:
    with kind("http://127.0.0.1:1", "key", retry_seconds=0.3) as client, pytest.raises(Unreachable):
        client.get("job_a")


def test_another_service(s3_server: S3Server) -> None:
    with (
        StrucPruneClient(s3_server.endpoint_url, "key", retry_seconds=0.3) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.get("job_a")
    assert "key" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "key", "words"),
    [(None, "k", "STRUCPRUNE_URL"), ("ftp://x", "k", "URL"), ("http://x", None, "STRUCPRUNE_API")],
)
def test_missing_settings_are_named(
    url: str | None, key: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRUCPRUNE_URL", raising=False)
    monkeypatch.delenv("STRUCPRUNE_API_KEY", raising=False)
    with pytest.raises(InvalidSpec, match=words):
        StrucPruneClient(url, key)


def test_a_key_is_not_shown_by_an_error() -> None:
    with pytest.raises(InvalidSpec) as caught:
        StrucPruneClient("http://x", "spk_secret\n")
    assert "spk_secret" not in str(caught.value)


def test_the_key_does_not_follow_a_redirect(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def redirect(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"Location": "http://elsewhere/"})

    client = StrucPruneClient("http://here", "k", retry_seconds=0)
    client._http = httpx.Client(base_url="http://here", transport=httpx.MockTransport(redirect))
    with pytest.raises(ClientError):
        client.get("job_a")
    assert asked == ["here"]
    client.close()


def test_sse_is_decoded_however_it_is_cut() -> None:
    stream = (
        ': comment\n\nid: 1-0\nevent: state\ndata: {"a": "\u2028 é"}\n\n'
        "id: 2-0\r\ndata: x\r\ndata:y\r\n\r\nid: 3-0\n\n"
    ).encode()
    whole = [Message("1-0", "state", '{"a": "\u2028 é"}'), Message("2-0", "", "x\ny")]
    assert Decoder().feed(stream) == whole
    for cut in range(len(stream)):
        decoder = Decoder()
        assert decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) == whole


@pytest.fixture
def command(
    proxy: FlakyProxy, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`strucprune jobs ...` with URL and key from the environment."""
    monkeypatch.setenv("STRUCPRUNE_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("STRUCPRUNE_API_KEY", keys["acme"])

    def call(*arguments: str, code: int = 0, text: str | None = None) -> Result:
        result = CliRunner().invoke(cli, ["jobs", *arguments], input=text)
        assert result.exit_code == code, result.output
        assert keys["acme"] not in result.output
        return result

    return call


def test_commands(
    command: Callable[..., Result],
    services: Services,
    body: dict[str, Any],
    bucket: str,
    tmp_path: Path,
) -> None:
    prefix = f"s3://{bucket}/{uuid4().hex}"
    body["output"]["uri_prefix"] = f"{prefix}/out"
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps(body), encoding="utf-8")
    shown = command("submit", "--spec", str(spec), "--validate").stdout
    assert "valid" in shown
    job_id = command("submit", "--spec", "-", text=spec.read_text(encoding="utf-8")).stdout.strip()
    spec.write_text(json.dumps(elsewhere(body)), encoding="utf-8")
    again = ("submit", "--spec", str(spec), "--idempotency-key", uuid4().hex, "--json")
    other = json.loads(command(*again).stdout)["id"]
    assert json.loads(command(*again).stdout)["id"] == other
    assert "cancelled" in command("cancel", other).stdout
    listed = json.loads(command("list", "--json").stdout)
    assert [job["id"] for job in listed] == [other, job_id]
    assert job_id in command("list", "--state", "queued").stdout
    assert json.loads(command("list", "--limit", "1", "--json").stdout)[0]["id"] == other
    assert "paused" in command("pause", job_id).stdout
    assert "queued" in command("resume", job_id).stdout
    command("download", job_id, "--output", str(tmp_path / "d"), code=1)

    publish(services, prefix, {"model.safetensors": b"weights"})
    later = threading.Timer(0.3, finish, (services, job_id))
    later.start()
    watched = command("watch", job_id)
    later.join()
    assert "succeeded" in watched.stdout
    assert "100% succeeded" in watched.stderr
    lines = command("watch", job_id, "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["succeeded"]
    command("watch", other, code=1)
    assert "succeeded" in command("show", job_id).stdout
    assert json.loads(command("retry", other, "--json").stdout)["run"] == 2
    log(services, other, 2)
    assert "run 1 attempt 1 INFO line 1\n" in command("logs", other).stdout
    lines = command("logs", other, "--json").stdout.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["line 0", "line 1"]
    assert "cancel it first" in command("delete", other, code=1).stderr
    services.ledger.request_cancel(other)
    record = services.ledger.get(other)
    assert record is not None
    services.ledger.release(other, record.fence)
    command("delete", other, "--outputs")
    command("show", other, code=1)
    paths = json.loads(
        command("download", job_id, "--output", str(tmp_path / "d"), "--json").stdout
    )
    assert Path(paths[0]).read_bytes() == b"weights"


def test_a_job_is_submitted_by_options(
    command: Callable[..., Result], body: dict[str, Any]
) -> None:
    named = (
        *("--model", body["model"]["uri"], "--output", body["output"]["uri_prefix"]),
        *("--calibration", body["calibration"]["uri"], "--sparsity", "0.25"),
        *("--priority", "high", "--label", "team=a", "--name", "Nightly"),
    )
    job = json.loads(command("submit", *named, "--json").stdout)
    assert job["labels"] == {"team": "a"}
    assert job["spec"]["name"] == "Nightly"
    assert "Nightly" in command("show", job["id"]).stdout
    assert "Nightly" in command("list").stdout
    assert job["spec"]["pruning"]["sparsity"] == 0.25
    assert job["spec"]["runtime"]["priority"] == "high"


def test_the_beginning_of_an_id_is_enough(
    command: Callable[..., Result], body: dict[str, Any]
) -> None:
    job_id = command("submit", "--spec", "-", text=json.dumps(body)).stdout.strip()
    digits = job_id.removeprefix("job_")[:12]
    assert json.loads(command("show", digits, "--json").stdout)["id"] == job_id
    assert job_id in command("cancel", f"job_{digits}").stdout
    assert "no_such_id" in command("show", "f" * 31, code=1).stderr
    assert "too short" in command("show", "job_0", code=2).stderr


@pytest.fixture
def finished(
    command: Callable[..., Result], services: Services, body: dict[str, Any]
) -> tuple[str, str]:
    """Id and output of a job of several sizes that has succeeded and left a workspace."""
    body = {**body, "pruning": {"sizes": [0.25]}}
    job_id = command("submit", "--spec", "-", text=json.dumps(body)).stdout.strip()
    services.journal.workspace(job_id).put(OWNER, b"{}")
    finish(services, job_id)
    return job_id, body["output"]["uri_prefix"]


def test_a_job_is_extended(
    command: Callable[..., Result], services: Services, finished: tuple[str, str]
) -> None:
    first, output = finished
    digits = first.removeprefix("job_")[:8]
    further = ("extend", digits, "--size", "0.5", "--size", "0.6", "--output")
    again = (*further, f"{output}-2", "--idempotency-key", uuid4().hex)
    second = command(*again).stdout.strip()
    assert command(*again).stdout.strip() == second
    job = json.loads(command("show", second, "--json").stdout)
    assert job["extends"] == first
    assert job["spec"]["pruning"]["sizes"] == [0.5, 0.6]
    assert job["spec"]["output"]["uri_prefix"] == f"{output}-2"
    assert first in command("show", second).stdout
    command("cancel", second)
    # The same key is the same job, which has ended by now.
    assert "cancelled" in command(*again, "--watch", code=1).stdout


def test_what_cannot_be_extended(
    command: Callable[..., Result], body: dict[str, Any], finished: tuple[str, str]
) -> None:
    first, output = finished
    refused = command("extend", first, "--size", "50", "--output", f"{output}-2", code=1).stderr
    assert "--size: a fraction between 0 and 1 is meant" in refused
    assert "--size" in command("extend", first, "--output", output, code=2).stderr
    waiting = elsewhere(body)
    waiting["pruning"] = {"sizes": [0.25]}
    job_id = command("submit", "--spec", "-", text=json.dumps(waiting)).stdout.strip()
    refused = command("extend", job_id, "--size", "0.5", "--output", f"{output}-2", code=1).stderr
    assert "(cannot_extend): " in refused
    assert "only one that has succeeded can be extended" in refused


def test_a_quota_for_people_and_programs(
    command: Callable[..., Result], body: dict[str, Any]
) -> None:
    command("submit", "--spec", "-", text=json.dumps(body))
    shown = command("quota").stdout
    assert re.search(r"^jobs that have not ended +1 +no limit$", shown, re.MULTILINE)
    assert re.search(r"^jobs in the list +1 +10,000$", shown, re.MULTILINE)
    quota = json.loads(command("quota", "--json").stdout)
    assert (quota["use"]["open_jobs"], quota["limits"]["kept_jobs"]) == (1, 10_000)


def test_operators_see_the_workers(
    command: Callable[..., Result],
    services: Services,
    keys: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = command("workers", code=1).stderr
    assert "(insufficient_scope)" in refused
    assert "strucprune keys create" in refused
    monkeypatch.setenv("STRUCPRUNE_API_KEY", keys["operator"])
    assert "No worker" in command("workers").stderr
    assert json.loads(command("workers", "--json").stdout) == []
    job_id = f"job_{uuid4().hex}"
    services.ledger.note_worker("one:1", {"host": "one", "pool": "cpu", "version": "0.1.0"})
    at_hand = {"job_id": job_id, "part": "help", "phase": "solving", "unit": "solve.3"}
    services.ledger.note_worker("one:1", at_hand)
    shown = command("workers").stdout
    assert re.search(rf"^one:1 .* {job_id} +help +solving +solve\.3 ", shown, re.MULTILINE)
    (worker,) = json.loads(command("workers", "--json").stdout)
    assert (worker["name"], worker["job_id"]) == ("one:1", job_id)


def test_ids_are_completed(
    command: Callable[..., Result], body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = command("submit", "--spec", "-", text=json.dumps(body)).stdout.strip()
    digits = job_id.removeprefix("job_")
    assert complete_id("") == complete_id("jo") == complete_id(job_id[:8]) == [job_id]
    assert complete_id(digits[:4]) == [digits]
    assert complete_id(f"{digits[:4]}x") == []
    monkeypatch.delenv("STRUCPRUNE_API_KEY")
    assert complete_id("job_") == []  # No message in the middle of what is typed.


def test_a_model_of_this_machine_is_submitted(
    command: Callable[..., Result],
    body: dict[str, Any],
    bucket: str,
    s3_server: S3Server,
    tiny_model: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STRUCPRUNE_S3_ENDPOINT_URL", s3_server.endpoint_url)
    monkeypatch.setenv("STRUCPRUNE_S3_ACCESS_KEY_ID", s3_server.access_key_id)
    monkeypatch.setenv("STRUCPRUNE_S3_SECRET_ACCESS_KEY", s3_server.secret_access_key)
    options = (
        *(str(tiny_model), "--output", body["output"]["uri_prefix"], "--sparsity", "0.25"),
        *("--calibration", str(text_file), "--samples", "8", "--sequence-length", "32"),
    )
    spec = json.loads(command("submit", *options, "--json").stdout)["spec"]
    assert spec["model"]["uri"] == str(tiny_model)  # which this service reads itself
    uploads = f"s3://{bucket}/{uuid4().hex}"
    other = ("--output", f"s3://{bucket}/{uuid4().hex}", "--upload-to", uploads)
    spec = json.loads(command("submit", *options, *other, "--json").stdout)["spec"]
    assert spec["model"]["uri"].startswith(f"{uploads}/models/{tiny_model.name}-")
    assert spec["calibration"]["uri"].startswith(f"{uploads}/texts/{text_file.name}-")


def test_one_of_several_sizes_is_downloaded(
    command: Callable[..., Result],
    services: Services,
    body: dict[str, Any],
    bucket: str,
    tmp_path: Path,
) -> None:
    prefix = f"s3://{bucket}/{uuid4().hex}"
    body["output"]["uri_prefix"] = f"{prefix}/out"
    job_id = command("submit", "--spec", "-", text=json.dumps(body)).stdout.strip()
    publish(services, prefix, {"0.2/w": b"a" * 1000, "0.5/w": b"bb", "0.5/gguf/m": b"ccc"})
    claim = claim_job(services.ledger, job_id, "w", 60)
    assert isinstance(claim, Claim)
    sizes = [{"folder": "0.2"}, {"folder": "0.5"}, {"folder": None}]
    services.ledger.finish(job_id, claim.fence, JobState.SUCCEEDED, summary={"sizes": sizes})
    here = tmp_path / "one"
    done = command("download", job_id, "--to", str(here), "--size", "0.50")
    assert "2 files, 5 B, in" in done.stderr
    assert sorted(path.name for path in here.rglob("*") if path.is_file()) == ["m", "w"]
    assert (here / "0.5/w").read_bytes() == b"bb"
    refused = command("download", job_id, "--to", str(here), "--size", "0.3", code=1).stderr
    assert "Choose one of 0.2, 0.5." in refused
    command("download", job_id, "--to", str(tmp_path / "all"))
    assert (tmp_path / "all/0.2/w").read_bytes() == b"a" * 1000


def test_a_retried_job_is_watched_to_the_end_of_its_last_run(
    command: Callable[..., Result], services: Services, body: dict[str, Any]
) -> None:
    job_id = command("submit", "--spec", "-", text=json.dumps(body)).stdout.strip()
    finish(services, job_id, JobState.FAILED)
    command("retry", job_id)
    later = threading.Timer(0.3, finish, (services, job_id))
    later.start()
    lines = command("watch", job_id, "--json").stdout.splitlines()
    later.join()
    told = [(json.loads(line)["run"], json.loads(line)["state"]) for line in lines]
    assert told[-1] == (2, "succeeded")
    assert {run for run, _ in told} == {2}


def test_commands_say_what_is_wrong(
    command: Callable[..., Result], body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    body["pruning"]["sparsity"] = 0.99
    refused = command("submit", "--spec", "-", "--json", text=json.dumps(body), code=1)
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["status"]) == ("invalid_spec", 422)
    found = command("submit", "--spec", "-", "--validate", text=json.dumps(body), code=1)
    assert "--sparsity: " in found.stderr
    assert "not valid JSON" in command("submit", "--spec", "-", text="{", code=2).stderr
    assert "cannot read" in command("submit", "--spec", "/nowhere/job.json", code=2).stderr
    assert "There is no such job" in command("show", "job_" + "0" * 32, code=1).stderr
    monkeypatch.delenv("STRUCPRUNE_API_KEY")
    assert "STRUCPRUNE_API_KEY" in command("list", code=2).stderr
