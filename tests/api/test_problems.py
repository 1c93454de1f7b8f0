from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.problems import MAX_ERRORS, MEDIA_TYPE
from api.services import Services
from api.settings import Settings
from strucprune_core.errors import AccessDenied, StorageUnavailable

JOBS = "/v1/pruning-jobs"


def is_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == MEDIA_TYPE
    problem: dict[str, Any] = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    return problem


def test_unknown_route_and_method(client: TestClient) -> None:
    is_problem(client.get("/nowhere"), 404, "not_found")
    answer = client.put(JOBS)
    is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, POST"
    assert client.post("/v1/capabilities").headers["Allow"] == "GET"
    assert client.put(f"{JOBS}/validate").headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"pruning": {"sparsity": 2}}, "/pruning/sparsity"),
        ({"pruning": {"sparsity": 0.5, "oddity": 1}}, "/pruning/oddity"),
        (
            {"pruning": {"sparsity": 0.5, "layout": "uniform", "allocation": "threshold"}},
            "/pruning",
        ),
        ({"model": {}}, "/model/uri"),
        ({"model": {"uri": "ftp://x/y"}}, "/model/uri"),
        ({"labels": {"a/b~c": 5}}, "/labels/a~1b~0c"),
        ({"labels": {"x" * 64: "v"}}, "/labels/" + "x" * 64),
        ({"runtime": {"priority": "urgent"}}, "/runtime/priority"),
    ],
)
def test_pointers(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], pointer: str
) -> None:
    problem = is_problem(client.post(JOBS, json={**body, **change}), 422, "validation_failed")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert problem["errors"][0]["detail"] in problem["detail"]


@pytest.mark.parametrize(
    ("pruning", "mends"),
    [
        ({"sparsity": 30}, [{"field": "pruning.sparsity", "value": 0.3}]),
        (
            {"sparsity": 0.3, "layout": "uniform", "allocation": "threshold"},
            [
                {"field": "pruning.allocation", "value": "uniform"},
                {"field": "pruning.layout", "value": "per_layer"},
            ],
        ),
        ({"sparsity": 0.3, "temperature": 1}, [{"field": "pruning.temperature", "value": None}]),
        ({"sparsity": 0.3, "rounds": 0}, []),
    ],
)
def test_what_would_mend_it(
    client: TestClient, body: dict[str, Any], pruning: dict[str, Any], mends: list[dict[str, Any]]
) -> None:
    answer = client.post(JOBS, json={**body, "pruning": pruning})
    (error,) = is_problem(answer, 422, "validation_failed")["errors"]
    assert error["mends"] == mends


def test_what_would_mend_what_only_the_model_tells(
    client: TestClient, body: dict[str, Any]
) -> None:
    body["pruning"] = {"sparsity": 0.25, "structures": ["kv_groups"], "exports": ["block_configs"]}
    (issue,) = client.post(f"{JOBS}/validate", json=body).json()["issues"]
    assert issue["mends"] == [
        {"field": "pruning.structures", "value": ["ffn_channels"]},
        {"field": "pruning.exports", "value": []},
    ]
    body["pruning"] = {"sparsity": 0.25}
    runtimes = client.post(f"{JOBS}/validate", json=body).json()["runtimes"]
    (mlx,) = [each for each in runtimes if each["runtime"] == "MLX"]
    assert {"field": "pruning.layout", "value": "uniform"} in mlx["mends"]
    assert {"field": "pruning.exports", "value": ["block_configs"]} in mlx["mends"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pruning": {"sparsty": 0.3}}, "There is no such field; is 'sparsity' meant?"),
        ({"pruning": {"sparsity": 0.3, "oddity": 1}}, "There is no such field; see /docs for"),
        ({"modell": {}}, "There is no such field; is 'model' meant?"),
        ({"evaluation": {"uri": "s3://b/t", "seqences": 1}}, "is 'sequences' meant?"),
        ({"model": {"uri": "ftp://x/y"}}, "scheme 'ftp' is not supported; use s3://bucket/key"),
    ],
)
def test_words_that_help(
    client: TestClient, body: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    problem = is_problem(client.post(JOBS, json={**body, **change}), 422, "validation_failed")
    details = [error["detail"] for error in problem["errors"]]
    assert any(detail.startswith(words) or words in detail for detail in details)
    assert "Value error" not in str(problem)
    # What there is too much of explains what is missing, so it comes first.
    assert words in problem["detail"]


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_that_is_not_declared_as_json(
    client: TestClient, body: dict[str, Any], kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for path in (JOBS, f"{JOBS}/validate"):
        answer = client.post(path, content=json.dumps(body), headers=headers)
        problem = is_problem(answer, 415, "unsupported_media_type")
        assert "`Content-Type: application/json`" in problem["detail"]


@pytest.mark.parametrize(
    "change",
    [
        {"pruning": {"sparsity": 0.5, "structures": [0] * 100_000}},
        {"pruning": {"sparsity": 0.5, "exports": [{}] * 60_000}},
        {"labels": {f"label {number}": [] for number in range(10_000)}},
        {f"unknown-{number}": 0 for number in range(10_000)},
        {"pruning": {"sparsity": 0.5, "max_sparsity_by_layer": {f"x{n}": "" for n in range(9999)}}},
        {"notifications": {"webhook_url": "x", "events": [""] * 60_000}},
    ],
    ids=["numbers", "objects", "labels", "fields", "layers", "events"],
)
def test_an_answer_lists_a_hundred_errors_at_most(
    client: TestClient, body: dict[str, Any], change: dict[str, Any]
) -> None:
    """240 kB of wrong items gave 18 MB."""
    content = json.dumps({**body, **change}, separators=(",", ":"))
    assert 100_000 < len(content) < 256 * 1024
    answer = client.post(JOBS, content=content, headers={"Content-Type": "application/json"})
    problem = is_problem(answer, 422, "validation_failed")
    assert len(problem["errors"]) <= MAX_ERRORS
    assert len(answer.content) < 100_000
    if len(problem["errors"]) == MAX_ERRORS:
        assert re.search(r"Of [\d,]+ errors the first 100 are listed\.", problem["detail"])


@pytest.mark.parametrize(
    "change",
    [
        {"x" * 200_000: 1},
        {"labels": {"x" * 200_000: 1}},
        {"model": {"uri": "ftp" * 60_000 + "://bucket"}},
        {"model": {"uri": "s3://" + "B" * 200_000}},
        {"runtime": {"priority": "x" * 200_000}},
        {"pruning": {"sparsity": "9" * 200_000}},
        {"notifications": {"webhook_url": "https://" + "x" * 200_000}},
    ],
)
def test_an_answer_does_not_repeat_a_long_request(
    client: TestClient, body: dict[str, Any], change: dict[str, Any]
) -> None:
    for path in (JOBS, f"{JOBS}/validate"):
        answer = client.post(path, json={**body, **change})
        assert answer.status_code == 422
        assert len(answer.content) < 8000


def test_parameters_are_not_repeated_either(client: TestClient) -> None:
    long = "x" * 50_000
    for params in ({"cursor": long}, {"label": long}, {"state": long}, {"created_after": long}):
        answer = client.get(JOBS, params=params)
        assert answer.status_code == 422
        assert len(answer.content) < 8000


def test_library_errors_point_too(client: TestClient, body: dict[str, Any]) -> None:
    body["pruning"]["sparsity"] = 0.99
    problem = is_problem(client.post(JOBS, json=body), 422, "invalid_spec")
    assert [error["pointer"] for error in problem["errors"]] == ["/pruning/sparsity"]


def test_malformed_json(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    is_problem(client.post(JOBS, content=b"{", headers=headers), 400, "malformed_json")
    problem = is_problem(client.post(JOBS), 422, "validation_failed")
    assert problem["errors"][0]["pointer"] == ""


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"model": {"uri": "\\ud800"}}',
        b'{"model": {"uri": "s3://bucket/\\u0000"}, "pruning": {"sparsity": NaN}}',
        b'{"pruning": {"sparsity": 1e400}, "labels": {"a": {"b": []}}}',
        b'{"runtime": {"deadline_seconds": ' + b"9" * 5000 + b"}}",
    ],
)
def test_hostile_bodies(client: TestClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post(JOBS, content=content, headers=headers)
    assert answer.status_code in (400, 422)
    is_problem(answer, answer.status_code, answer.json()["code"])


def test_request_size_declared(client: TestClient) -> None:
    is_problem(client.post(JOBS, content=b"x" * 300_000), 413, "request_too_large")


def test_request_size_not_declared(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    chunks = (b" " * 1000 for _ in range(1000))
    is_problem(client.post(JOBS, content=chunks, headers=headers), 413, "request_too_large")


def test_a_safe_request_id_is_kept(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"X-Request-ID": "trace-12345678"})
    assert answer.headers["X-Request-ID"] == "trace-12345678"
    answer = client.get("/healthz", headers={"X-Request-ID": "line\tbreak 12345"})
    assert answer.headers["X-Request-ID"] != "line\tbreak 12345"


def test_redis_down_is_503(settings: Settings, keys: dict[str, str], body: dict[str, Any]) -> None:
    broken = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(create_app(broken), headers=headers) as client:
        for answer in (client.get(JOBS), client.post(JOBS, json=body)):
            is_problem(answer, 503, "ledger_unavailable")
            assert answer.headers["Retry-After"].isdigit()
        is_problem(client.get("/readyz"), 503, "not_ready")
        assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("failure", [StorageUnavailable("down"), AccessDenied("secret detail")])
def test_journal_down_is_503(
    client: TestClient,
    services: Services,
    body: dict[str, Any],
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(services.journal, "write_spec", fail)
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 503
    assert "secret" not in answer.text
    assert services.ledger.list("acme").jobs == []


def test_a_bug_is_a_500_that_tells_nothing(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("api.jobs.ledger.Ledger.list", fail)
    answer = client.get(JOBS)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.json()["request_id"]
    assert "secret" not in answer.text


def test_readiness(client: TestClient) -> None:
    assert client.get("/readyz").json() == {"status": "ok"}


def test_the_docs_need_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    links = re.findall(r"(?:src|href)=\"([^\"]+)", page)
    assert len(links) >= 3
    for link in links:
        assert "//" not in link
        assert client.get(link).status_code == 200
    assert "//" not in re.sub(r"<!--.*?-->|<script>.*?</script>", "", page, flags=re.S)


def test_openapi(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    assert set(paths) == {
        JOBS,
        f"{JOBS}/validate",
        f"{JOBS}/{{job_id}}",
        *(
            f"{JOBS}/{{job_id}}/{name}"
            for name in (
                "cancel",
                "pause",
                "resume",
                "retry",
                "events",
                "logs",
                "report",
                "artifacts",
            )
        ),
        "/v1/capabilities",
        "/v1/models",
        "/v1/quota",
        "/v1/workers",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for name, schema in ((p["name"], p["schema"]) for p in paths[JOBS]["get"]["parameters"]):
        assert {"type": "null"} not in schema.get("anyOf", []), name
    submit = paths[JOBS]["post"]
    assert set(submit["responses"]) == {
        "202",
        "400",
        "401",
        "403",
        "409",
        "413",
        "415",
        "422",
        "429",
        "503",
    }
    assert set(submit["responses"]["202"]["headers"]) >= {"Location", "ETag", "Retry-After"}
    for path in paths.values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    (media,) = answer["content"]
                    assert media == MEDIA_TYPE
                    schema = answer["content"][media]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}
    assert submit["security"] == [{"HTTPBearer": []}]
