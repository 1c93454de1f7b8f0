from __future__ import annotations

import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.inspection.inspectors import InspectionUnavailable, Inspectors
from api.jobs.ledger import Ledger
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.routes import jobs
from api.services import Services
from strucprune_core.plan.device_table import shipped_tables
from tests.support.claims import claim_job
from tests.support.device_tables import made_table
from tests.support.routes import JOBS, elsewhere, submit


def test_submit(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert job["state"] == "queued"
    assert job["attempt"] == 0
    assert job["spec"]["pruning"]["sparsity"] == 0.25
    assert job["spec"]["pruning"]["allocation"] == "threshold"
    assert job["labels"] == {"team": "nlp"}
    assert datetime.fromisoformat(job["created_at"]).tzinfo is not None
    assert job["started_at"] is None
    assert answer.headers["Location"] == job["links"]["self"] == f"{JOBS}/{job['id']}"
    assert answer.headers["Retry-After"].isdigit()
    assert answer.headers["ETag"] == client.get(job["links"]["self"]).headers["ETag"]
    assert "Idempotency-Replayed" not in answer.headers


def test_idempotency_key(client: TestClient, body: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "abc"}
    first = submit(client, body, **key)
    answer = client.post(JOBS, json=body, headers=key)
    assert (answer.status_code, answer.json()["id"]) == (202, first["id"])
    assert answer.headers["Idempotency-Replayed"] == "true"
    body["pruning"]["sparsity"] = 0.5
    answer = client.post(JOBS, json=body, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


def test_validate(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(f"{JOBS}/validate", json=body)
    assert answer.status_code == 200
    assert answer.json()["valid"]
    estimate = answer.json()["estimate"]
    assert 0 < estimate["parameters_after"] < estimate["parameters_before"]
    assert client.get(JOBS).json()["data"] == []


def test_validate_says_which_runtimes_load_the_result(
    client: TestClient, body: dict[str, Any]
) -> None:
    body["pruning"] = {"sparsity": 0.3, "exports": ["gguf"]}
    answer = client.post(f"{JOBS}/validate", json=body).json()
    found = {entry["runtime"]: entry for entry in answer["runtimes"]}
    assert (found["llama.cpp"]["loads"], found["llama.cpp"]["folder"]) == (True, "gguf")
    assert not found["MLX"]["loads"]
    assert "block_configs" in found["MLX"]["remedy"]
    assert answer["estimate"]["export_bytes"]["gguf"] > 0


def test_validate_predicts_speed(client: TestClient, body: dict[str, Any]) -> None:
    table = made_table().model_dump(mode="json")
    target = {"speedup": 1.05, "context_tokens": 64, "device_table": table}
    body["pruning"] = {"target": target, "multiple_of": 16}
    answer = client.post(f"{JOBS}/validate", json=body).json()
    assert answer["issues"] == []
    speed = answer["estimate"]["predicted_speed"]
    assert speed["predicted"] >= 1.05
    assert (speed["of"], speed["table_sha256"]) == ("decode", made_table().sha256())
    here = submit(client, body)["links"]["self"]
    kept = client.get(here).json()["spec"]["pruning"]["target"]["device_table"]
    assert kept == table

    body = elsewhere(body)
    body["pruning"]["target"] = {"speedup": 1.05, "device": "abacus"}
    body = elsewhere(body)
    (issue,) = client.post(f"{JOBS}/validate", json=body).json()["issues"]
    assert issue["pointer"] == "/pruning/target/device"
    assert shipped_tables()[0] in issue["detail"]
    broken = {**table, "widths": [8]}
    body["pruning"]["target"] = {"speedup": 1.05, "device_table": broken}
    answer = client.post(f"{JOBS}/validate", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/pruning/target/device_table"


def test_validate_says_what_is_wrong(
    client: TestClient, body: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output/something").touch()
    body["pruning"] = {"sparsity": 0.99}
    answer = client.post(f"{JOBS}/validate", json=body)
    assert answer.status_code == 200
    assert not answer.json()["valid"]
    assert answer.json()["estimate"] is None
    assert answer.json()["runtimes"] is None
    issues = {issue["pointer"]: issue["code"] for issue in answer.json()["issues"]}
    assert issues == {
        "/pruning/sparsity": "invalid_spec",
        "/output/uri_prefix": "output_not_empty",
    }


def test_validate_checks_places_of_a_job_that_is_not_complete(
    client: TestClient, body: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output/something").touch()
    model = {"uri": str(tmp_path / "nothing")}
    for partial, storage in (
        ({"model": model}, {"/model/uri"}),
        ({"output": body["output"]}, {"/output/uri_prefix"}),
        ({"calibration": model, "pruning": {"sparsity": 7}}, {"/calibration/uri"}),
        ({"evaluation": model, "runtime": {"max_workers": 0}}, {"/evaluation/uri"}),
        (
            {**body, "model": model, "pruning": {"sparsity": "much"}},
            {"/model/uri", "/output/uri_prefix"},
        ),
    ):
        answer = client.post(f"{JOBS}/validate", json=partial)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "validation_failed")
        codes = {error["pointer"]: error["code"] for error in problem["errors"]}
        found = {
            pointer
            for pointer, code in codes.items()
            if code in ("object_not_found", "output_not_empty")
        }
        assert found == storage
        assert len(codes) > len(found)  # What is missing is said as well.
        submitted = client.post(JOBS, json=partial).json()
        assert [each["pointer"] for each in submitted["errors"]] == [
            error["pointer"] for error in problem["errors"] if error["pointer"] not in storage
        ]


def test_a_place_that_is_not_allowed_hides_no_other_problem(
    client: TestClient, body: dict[str, Any], services: Services, tmp_path: Path
) -> None:
    body["output"]["uri_prefix"] = services.settings.state_uri
    body["model"]["uri"] = str(tmp_path / "nothing")
    issues = client.post(f"{JOBS}/validate", json=body).json()["issues"]
    assert {issue["pointer"]: issue["code"] for issue in issues} == {
        "/output/uri_prefix": "uri_not_allowed",
        "/model/uri": "object_not_found",
    }
    del body["calibration"]
    errors = client.post(f"{JOBS}/validate", json=body).json()["errors"]
    assert [error["code"] for error in errors] == [
        "missing",
        "uri_not_allowed",
        "object_not_found",
    ]


def test_helpers_that_are_busy_hide_no_malformed_field(
    client: TestClient, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any, **__: Any) -> Any:
        raise InspectionUnavailable("Too many jobs are being checked.")

    monkeypatch.setattr(Inspectors, "judge", busy)
    body["pruning"]["sparsity"] = 30
    answer = client.post(f"{JOBS}/validate", json=body)
    assert answer.status_code == 422
    wrong, unknown = answer.json()["errors"]
    assert wrong["pointer"] == "/pruning/sparsity"
    assert (unknown["code"], unknown["pointer"]) == ("inspection_unavailable", None)


def test_both_ways_in_describe_the_same_body(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    submitted, validated = (
        paths[path]["post"]["requestBody"] for path in (JOBS, f"{JOBS}/validate")
    )
    assert submitted == validated


def test_a_running_and_a_failed_job(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    here = submit(client, body)["links"]["self"]
    job_id = here.rsplit("/", 1)[1]
    claim = claim_job(services.ledger, job_id, "w", 60)
    assert isinstance(claim, Claim)
    progress = {
        "phase": "solving",
        "layers_done": 2,
        "layers_total": 4,
        "fraction": 0.5,
        "eta_seconds": None,
        "phases": {"solving": [2, 4]},
        "unit": "solve.2",
    }
    services.ledger.heartbeat(job_id, claim.fence, 60, progress)
    job = client.get(here).json()
    assert (job["state"], job["attempt"]) == ("running", 1)
    titles = {
        "title": "Pruning and repairing layers",
        "unit_title": "Prune and repair layer 2",
    }
    assert job["progress"] == {**progress, **titles}
    error = {"code": "numerical_failure", "message": "m", "retryable": False, "layer": 3}
    services.ledger.finish(job_id, claim.fence, JobState.FAILED, error=error)
    job = client.get(here).json()
    assert job["state"] == "failed"
    assert job["error"] == {**error, "phase": None}
    assert job["finished_at"] is not None


def test_etag(client: TestClient, services: Services, body: dict[str, Any]) -> None:
    job = submit(client, body)
    tag = client.get(job["links"]["self"]).headers["ETag"]
    answer = client.get(job["links"]["self"], headers={"If-None-Match": f'"x", W/{tag}'})
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
    claim_job(services.ledger, job["id"], "w", 60)
    answer = client.get(job["links"]["self"], headers={"If-None-Match": tag})
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert answer.headers["ETag"] != tag


def test_long_poll_returns_on_change(
    client: TestClient, services: Services, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.02)
    job = submit(client, body)
    tag = client.get(job["links"]["self"]).headers["ETag"]
    later = threading.Timer(0.2, services.ledger.claim, ("w", 60))
    began = time.monotonic()
    later.start()
    answer = client.get(
        job["links"]["self"], headers={"If-None-Match": tag, "Prefer": "respond-async, wait=30"}
    )
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert 0.1 < time.monotonic() - began < 10
    later.join()


def test_long_poll_without_a_tag_waits_for_the_end(
    client: TestClient, body: dict[str, Any]
) -> None:
    job = submit(client, body)
    began = time.monotonic()
    assert (
        client.get(job["links"]["self"], headers={"Prefer": "wait=1"}).json()["state"] == "queued"
    )
    assert time.monotonic() - began >= 1
    client.post(job["links"]["cancel"])
    answer = client.get(job["links"]["self"], headers={"Prefer": "wait=30"})
    assert answer.json()["state"] == "cancelled"


def test_list_pages_and_filters(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    ids = [submit(client, elsewhere(body))["id"] for _ in range(3)]
    first = client.get(JOBS, params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == [ids[2], ids[1]]
    second = client.get(JOBS, params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in second["data"]] == [ids[0]]
    assert second["next_cursor"] is None
    claim_job(services.ledger, ids[0], "w", 60)
    running = client.get(JOBS, params={"state": "running"}).json()["data"]
    assert [job["id"] for job in running] == [ids[0]]
    assert len(client.get(JOBS, params={"label": "team=nlp"}).json()["data"]) == 3
    assert client.get(JOBS, params={"label": "team=other"}).json()["data"] == []
    middle = second["data"][0]["created_at"]
    assert len(client.get(JOBS, params={"created_after": middle}).json()["data"]) == 2
    assert client.get(JOBS, params={"created_before": middle}).json()["data"] == []


@pytest.mark.parametrize("ticks", range(8))
def test_a_job_is_not_created_after_itself(
    client: TestClient, body: dict[str, Any], ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks tick in quarters of a microsecond: index and view rounded them differently."""
    monkeypatch.setattr(Ledger, "now", lambda _: 1764037388.8105408 + ticks * 2**-22)
    at = submit(client, body)["created_at"]
    monkeypatch.undo()
    assert client.get(JOBS, params={"created_after": at}).json()["data"] == []
    assert client.get(JOBS, params={"created_before": at}).json()["data"] == []


@pytest.mark.parametrize(
    "params",
    [
        *({"limit": 101}, {"limit": 0}, {"cursor": "nonsense"}, {"state": "odd"}, {"label": "x"}),
        {"created_after": "yesterday"},
        {"created_before": "2026-01-31T12:00:00"},  # of which time zone?
        {"created_after": "0.5"},  # seconds, milliseconds?
        {"created_after": "1764000000"},
    ],
)
def test_bad_list_parameters(client: TestClient, params: dict[str, Any]) -> None:
    answer = client.get(JOBS, params=params)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["parameter"]) == (None, next(iter(params)))


def test_a_lost_ledger_loses_no_job(
    client: TestClient, body: dict[str, Any], flush: redis.Redis
) -> None:
    job = submit(client, body)
    flush.flushdb()
    found = client.get(job["links"]["self"]).json()
    assert (found["id"], found["state"]) == (job["id"], "queued")
    assert found["created_at"] == job["created_at"]


@pytest.mark.parametrize("job_id", ["job_" + "0" * 32, "job_x", "..", "%2e%2e%2fspec", "job_é"])
def test_unknown_jobs(client: TestClient, job_id: str) -> None:
    assert client.get(f"{JOBS}/{job_id}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/logs"),
        ("GET", "/report"),
        ("GET", "/artifacts"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ],
)
def test_other_tenants_jobs_do_not_exist(
    client: TestClient,
    services: Services,
    body: dict[str, Any],
    keys: dict[str, str],
    method: str,
    path: str,
) -> None:
    job = submit(client, body)
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    answer = client.request(method, job["links"]["self"] + path, headers=rival)
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert client.get(JOBS, headers=rival).json()["data"] == []
    record = services.ledger.get(job["id"])
    assert record is not None
    assert record.state == JobState.QUEUED


def test_capabilities(client: TestClient) -> None:
    answer = client.get("/v1/capabilities").json()
    assert "llama" in answer["architectures"]
    assert answer["structures"] == [
        "ffn_channels",
        "kv_groups",
        "query_heads",
        "experts",
        "attention_blocks",
        "ffn_blocks",
        "layers",
    ]
    assert answer["device_tables"] == shipped_tables()
    assert answer["allocations"] == ["threshold", "softmax", "uniform"]
    assert answer["energies"] == ["kl_probe", "gradient", "forward"]
    assert answer["solvers"] == ["obs", "admm"]
    assert answer["layouts"] == ["per_layer", "uniform"]
    assert answer["exports"] == ["gguf", "gguf_q8_0", "fp8", "block_configs"]
    loads = {each["name"]: [form["form"] for form in each["loads"]] for each in answer["runtimes"]}
    assert loads["llama.cpp"] == ["gguf", "gguf_q8_0"]
    # Uniform twice: of some families only with all heads.
    assert loads["vLLM"] == ["uniform", "uniform", "per_layer", "block_configs", "fp8"]
    assert answer["limits"]["request_bytes"] == 256 * 1024
