"""Report and artefacts, on a real S3 server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.jobs.journal import JournalEntry
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.routes.artifacts import MAX_DOCUMENT_BYTES, MAX_PAGE_SIZE
from api.services import Services
from api.settings import Settings
from embedded.s3 import S3Server
from strucprune_core.spec import JobSpec
from strucprune_core.storage.s3 import S3Store
from strucprune_core.storage.s3_settings import S3Settings
from tests.support.claims import claim_job

WEIGHTS = b"weights"
JOB_ID = "job_" + "a" * 32
HERE = f"/v1/pruning-jobs/{JOB_ID}"


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    name = f"api-{uuid4().hex}"
    s3_server.create_bucket(name)
    return name


@pytest.fixture
def prefix(bucket: str) -> str:
    return f"s3://{bucket}/{uuid4().hex}"


@pytest.fixture
def client(
    settings: Settings, keys: dict[str, str], flush: redis.Redis, s3_server: S3Server, prefix: str
) -> Iterator[TestClient]:
    """The app with journal and outputs on S3."""
    s3 = S3Settings(
        endpoint_url=s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )
    changed = settings.model_copy(update={"s3": s3, "state_uri": f"{prefix}/state"})
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(create_app(changed), headers=headers) as client:
        yield client


@pytest.fixture
def job(services: Services, prefix: str) -> None:
    """A job that has succeeded."""
    spec = JobSpec.model_validate(
        {
            "model": {"uri": f"{prefix}/model"},
            "output": {"uri_prefix": f"{prefix}/out"},
            "pruning": {"sparsity": 0.5},
            "calibration": {"uri": f"{prefix}/text"},
        }
    )
    entry = JournalEntry(tenant="acme", spec=spec, fingerprint="f", created_at=1.0)
    services.journal.write_spec(JOB_ID, entry)
    services.ledger.create(entry.as_new_job(JOB_ID))
    claim = claim_job(services.ledger, JOB_ID, "w", 60)
    assert isinstance(claim, Claim)
    services.ledger.finish(JOB_ID, claim.fence, JobState.SUCCEEDED)


def publish(services: Services, prefix: str, *names: str) -> None:
    store = services.stores.open(f"{prefix}/out")
    store.put("model.safetensors", WEIGHTS)
    store.put("report.json", b'{"schema_version": "1.0"}')
    store.put("report.html", b"<script>steal()</script>")
    files = [
        {"name": name, "bytes": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
        for name in names or ("model.safetensors",)
    ]
    manifest = {"format_version": 1, "files": files, "more": "fields"}
    store.put("strucprune.json", json.dumps(manifest).encode())


@pytest.mark.usefixtures("job")
def test_report(client: TestClient, services: Services, prefix: str) -> None:
    publish(services, prefix)
    answer = client.get(f"{HERE}/report")
    assert answer.json() == {"schema_version": "1.0"}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Vary"] == "Accept"
    by_accept = client.get(f"{HERE}/report", headers={"Accept": "text/html,*/*;q=0.8"})
    by_query = client.get(f"{HERE}/report", params={"format": "html"})
    assert by_accept.text == by_query.text == "<script>steal()</script>"
    assert by_query.headers["Content-Type"].startswith("text/html")
    assert (by_query.headers["Vary"], by_query.headers["X-Content-Type-Options"]) == (
        "Accept",
        "nosniff",
    )
    assert by_query.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert client.get(f"{HERE}/report", params={"format": "pdf"}).status_code == 422


@pytest.mark.usefixtures("job")
def test_artifacts(client: TestClient, services: Services, prefix: str) -> None:
    publish(services, prefix)
    file, manifest = client.get(f"{HERE}/artifacts").json()["data"]
    assert file["uri"] == f"{prefix}/out/model.safetensors"
    assert manifest["name"] == "strucprune.json"
    assert file["url"] is None
    answer = client.get(f"{HERE}/artifacts", params={"presign": "true"}).json()
    for entry in answer["data"]:
        downloaded = httpx.get(entry["url"]).content
        assert hashlib.sha256(downloaded).hexdigest() == entry["sha256"]
    assert answer["expires_seconds"] > 0


@pytest.mark.usefixtures("job")
def test_artifacts_in_folders(client: TestClient, services: Services, prefix: str) -> None:
    services.stores.open(f"{prefix}/out").put("gguf/model.gguf", WEIGHTS)
    publish(services, prefix, "gguf/model.gguf")
    file, _ = client.get(f"{HERE}/artifacts", params={"presign": "true"}).json()["data"]
    assert (file["name"], file["uri"]) == ("gguf/model.gguf", f"{prefix}/out/gguf/model.gguf")
    assert httpx.get(file["url"]).content == WEIGHTS


def names_of(answer: Any) -> list[str]:
    return [entry["name"] for entry in answer.json()["data"]]


@pytest.mark.usefixtures("job")
def test_artifacts_come_in_pages(client: TestClient, services: Services, prefix: str) -> None:
    names = [f"model-{number:05}.safetensors" for number in range(250)]
    publish(services, prefix, *names)
    answer = client.get(f"{HERE}/artifacts")
    pages = [names_of(answer)]
    while after := answer.json()["next_after"]:
        answer = client.get(f"{HERE}/artifacts", params={"after": after})
        pages.append(names_of(answer))
    assert [len(page) for page in pages] == [100, 100, 51]
    assert [name for page in pages for name in page] == [*names, "strucprune.json"]
    few = client.get(f"{HERE}/artifacts", params={"limit": 2, "after": names[248]})
    assert (names_of(few), few.json()["next_after"]) == ([names[249], "strucprune.json"], None)
    assert client.get(f"{HERE}/artifacts", params={"limit": 101}).status_code == 422
    gone = client.get(f"{HERE}/artifacts", params={"after": "nothing"})
    assert (gone.status_code, gone.json()["code"]) == (404, "artifact_gone")


@pytest.mark.usefixtures("job")
def test_one_file_by_name(
    client: TestClient, services: Services, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One URL is made, however many files there are."""
    publish(services, prefix, *(f"f{number}" for number in range(100)), "model.safetensors")
    made: list[str] = []
    presign = S3Store.presign

    def noting(store: S3Store, key: str, seconds: int) -> str:
        made.append(key)
        return presign(store, key, seconds)

    monkeypatch.setattr(S3Store, "presign", noting)
    params = {"presign": "true", "name": "model.safetensors"}
    answer = client.get(f"{HERE}/artifacts", params=params)
    assert names_of(answer) == made == ["model.safetensors"]
    assert answer.json()["next_after"] is None
    assert httpx.get(answer.json()["data"][0]["url"]).content == WEIGHTS
    manifest = client.get(f"{HERE}/artifacts", params={"name": "strucprune.json"})
    assert names_of(manifest) == ["strucprune.json"]
    gone = client.get(f"{HERE}/artifacts", params={**params, "name": "another"})
    assert (gone.status_code, gone.json()["code"]) == (404, "artifact_gone")
    made.clear()
    client.get(f"{HERE}/artifacts", params={"presign": "true"})
    assert len(made) == MAX_PAGE_SIZE


@pytest.mark.usefixtures("job")
def test_a_manifest_that_no_job_writes(
    client: TestClient, services: Services, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 entries cost 23 s of processor time; neither are they parsed nor read."""
    store = services.stores.open(f"{prefix}/out")
    read: list[int] = []
    found = S3Store.read

    def noting(store: S3Store, key: str, start: int = 0, length: int | None = None) -> bytearray:
        if store.uri.endswith("/out"):
            assert length is not None
            read.append(length)
        return found(store, key, start, length)

    monkeypatch.setattr(S3Store, "read", noting)
    publish(services, prefix, *(f"f{number}" for number in range(20_000)))
    for params in ({}, {"presign": "true"}, {"name": "f1"}, {"after": "f1"}):
        answer = client.get(f"{HERE}/artifacts", params=params)
        assert (answer.status_code, answer.json()["code"]) == (404, "artifact_gone")
    assert read == []
    deep = b'{"format_version": 1, "files": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    twice = {"name": "a", "bytes": 1, "sha256": "x"}
    for content in (
        deep,
        json.dumps({"format_version": 1, "files": [twice, twice]}).encode(),
        json.dumps({"format_version": 1, "files": [{**twice, "name": "strucprune.json"}]}).encode(),
    ):
        store.put("strucprune.json", content)
        answer = client.get(f"{HERE}/artifacts")
        assert (answer.status_code, answer.json()["code"]) == (404, "artifact_gone")


@pytest.mark.usefixtures("job")
def test_a_report_that_no_job_writes(
    client: TestClient, services: Services, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones come in pieces; larger ones are not even read."""
    store = services.stores.open(f"{prefix}/out")
    lengths: list[int | None] = []
    found = S3Store.read

    def noting(store: S3Store, key: str, start: int = 0, length: int | None = None) -> bytearray:
        if store.uri.endswith("/out"):
            lengths.append(length)
        return found(store, key, start, length)

    monkeypatch.setattr(S3Store, "read", noting)
    content = b"0123456789" * 300_000
    store.put("report.json", content)
    answer = client.get(f"{HERE}/report")
    assert (answer.content, answer.headers["Content-Length"]) == (content, str(len(content)))
    assert len(lengths) == 3
    assert max(length or 1 << 40 for length in lengths) <= 1 << 20
    lengths.clear()
    store.put("report.json", b"x" * (MAX_DOCUMENT_BYTES + 1))
    answer = client.get(f"{HERE}/report")
    assert (answer.status_code, answer.json()["code"]) == (404, "artifact_gone")
    assert lengths == []
    store.put("report.json", b"")
    assert client.get(f"{HERE}/report").content == b""


@pytest.mark.usefixtures("job")
def test_a_manifest_cannot_lead_out_of_the_output(
    client: TestClient, services: Services, prefix: str
) -> None:
    publish(services, prefix, "../state/secret")
    answer = client.get(f"{HERE}/artifacts", params={"presign": "true"})
    assert (answer.status_code, answer.json()["code"]) == (404, "artifact_gone")


@pytest.mark.usefixtures("job")
def test_results_that_the_user_removed(client: TestClient, services: Services, prefix: str) -> None:
    for path in ("report", "artifacts"):
        answer = client.get(f"{HERE}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "artifact_gone")
    services.stores.open(f"{prefix}/out").put("strucprune.json", b"{}")
    assert client.get(f"{HERE}/artifacts").status_code == 404


def test_no_results_before_success(client: TestClient, services: Services, prefix: str) -> None:
    spec = JobSpec.model_validate(
        {
            "model": {"uri": f"{prefix}/model"},
            "output": {"uri_prefix": f"{prefix}/out"},
            "pruning": {"sparsity": 0.5},
            "calibration": {"uri": f"{prefix}/text"},
        }
    )
    entry = JournalEntry(tenant="acme", spec=spec, fingerprint="f", created_at=1.0)
    services.ledger.create(entry.as_new_job(JOB_ID))
    for path in ("report", "artifacts"):
        answer = client.get(f"{HERE}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_succeeded")


def test_submit_on_s3_names_what_is_missing(client: TestClient, prefix: str) -> None:
    body = {
        "model": {"uri": f"{prefix}/model"},
        "output": {"uri_prefix": f"{prefix}/out"},
        "pruning": {"sparsity": 0.5},
        "calibration": {"uri": f"{prefix}/text"},
    }
    answer = client.post("/v1/pruning-jobs", json=body)
    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == {
        "/model/uri",
        "/calibration/uri",
    }


def test_ready_on_s3(client: TestClient) -> None:
    assert client.get("/readyz").status_code == 200
