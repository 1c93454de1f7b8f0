from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.jobs import ledger as ledger_module
from api.jobs.ledger import connect
from api.jobs.record import Claim
from api.services import Services
from tests.support.claims import claim_job
from tests.support.records import new_job
from tests.support.routes import submit


def line(number: int) -> dict[str, Any]:
    return {
        "at": 1000.0 + number,
        "run": 1,
        "attempt": 1,
        "level": "INFO",
        "message": f"line {number}",
    }


def test_logs(client: TestClient, services: Services, body: dict[str, Any]) -> None:
    job = submit(client, body)
    here = job["links"]["logs"]
    assert client.get(here).json() == {"data": [], "next_after": "0"}
    claim = claim_job(services.ledger, job["id"], "w", 60)
    assert isinstance(claim, Claim)
    services.ledger.append_logs(job["id"], claim.fence, [line(number) for number in range(3)])
    page = client.get(here, params={"limit": 2}).json()
    assert [each["message"] for each in page["data"]] == ["line 0", "line 1"]
    assert page["data"][0]["at"] == "1970-01-01T00:16:40Z"
    rest = client.get(here, params={"after": page["next_after"]}).json()
    assert [each["message"] for each in rest["data"]] == ["line 2"]
    answer = client.get(here, headers={"Accept": "text/plain"})
    assert answer.headers["Content-Type"].startswith("text/plain")
    first = answer.text.splitlines()[0]
    assert first == "1970-01-01T00:16:40.000Z run 1 attempt 1 INFO line 0"
    assert client.get(here, params={"after": "("}).status_code == 422


def test_the_log_is_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LOGS_KEPT", 200)
    ledger = connect(redis_url, "test-bounded-log")
    ledger.create(new_job("job_log"))
    claim = claim_job(ledger, "job_log", "w", 60)
    assert isinstance(claim, Claim)
    for start in range(0, 1000, 100):
        lines = [line(number) for number in range(start, start + 100)]
        assert ledger.append_logs("job_log", claim.fence, lines)
    kept = ledger.logs("job_log", limit=1000)
    assert 200 <= len(kept) < 400  # trimmed by whole blocks of the stream
    assert kept[-1].message == "line 999"
    ledger.close()
