"""Metrics: what Prometheus reads, and that docs/metrics.md names all of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.meters import ATTEMPTS, BYTES_MOVED, ENDED, UNIT_SECONDS, Tally
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.services import Services
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import new_job
from tests.support.routes import JOBS, elsewhere, submit

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
DOCS = Path(__file__).parents[2] / "docs/metrics.md"


def scrape(client: TestClient) -> Samples:
    answer = client.get("/metrics", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_jobs_and_queues(client: TestClient, services: Services, body: dict[str, Any]) -> None:
    for priority in ("low", "low", "high"):
        body["runtime"] = {"priority": priority}
        job = submit(client, elsewhere(body))
    time.sleep(0.1)
    client.post(job["links"]["cancel"])
    found = scrape(client)
    assert found["strucprune_ledger_up", ()] == 1
    assert found["strucprune_jobs", (("state", "queued"),)] == 2
    assert found["strucprune_jobs", (("state", "cancelled"),)] == 1
    assert found["strucprune_jobs", (("state", "running"),)] == 0
    assert found["strucprune_queue_jobs", (("priority", "low"),)] == 2
    assert found["strucprune_queue_age_seconds", (("priority", "low"),)] >= 0.1
    assert found["strucprune_queue_age_seconds", (("priority", "high"),)] == 0


def test_the_age_of_a_queue_is_not_reset_by_ringing_again(ledger: Ledger) -> None:
    ledger.create(new_job())
    advance(ledger, 60)
    assert ledger.queued_longer_than(30, 10) == ["job_a"]
    assert ledger.queues()["normal"].age_seconds >= 60
    claim_job(ledger, "job_a", "w", 60)
    assert ledger.queues()["normal"].age_seconds == 0.0


def test_jobs_are_counted_through_every_change(ledger: Ledger) -> None:
    ledger.create(new_job())
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    ledger.finish("job_a", claim.fence, JobState.FAILED)
    ledger.reopen("job_a", 1)
    ledger.request_cancel("job_a")
    assert {state: count for state, count in ledger.counts().items() if count} == {"cancelled": 1}
    ledger.forget("job_a")
    assert not any(ledger.counts().values())


def test_totals_of_all_programs(client: TestClient, services: Services) -> None:
    for seconds in (0.05, 3.0, 1e6):
        tally = Tally(services.ledger)
        tally.observe(UNIT_SECONDS, seconds, "curve")
        tally.count(ATTEMPTS)
        tally.count(ENDED, "failed", 'odd"code')
        tally.count(BYTES_MOVED, "store", by=1e12)
        tally.flush()
        tally.flush()
    found = scrape(client)
    assert found["strucprune_attempts_total", ()] == 3
    assert found["strucprune_moved_bytes_total", (("to", "store"),)] == 3e12
    ended = (("code", 'odd"code'), ("state", "failed"))
    assert found["strucprune_attempts_ended_total", ended] == 3
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "strucprune_unit_seconds_bucket"
    }
    assert (buckets["0.1"], buckets["1.0"], buckets["5.0"]) == (1, 1, 2)
    assert (buckets["14400.0"], buckets["+Inf"]) == (2, 3)
    assert found["strucprune_unit_seconds_sum", (("kind", "curve"),)] == pytest.approx(1e6 + 3.05)
    assert found["strucprune_duplicate_doorbells_total", ()] == 0


def test_what_the_ledger_does_not_take_is_kept(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(amounts: object) -> None:
        raise LedgerUnavailable("down")

    tally = Tally(ledger)
    tally.count(ATTEMPTS)
    with monkeypatch.context() as outage:
        outage.setattr(ledger, "add_totals", fail)
        tally.flush()
    tally.count(ATTEMPTS)
    tally.flush()
    assert [*ledger.totals().values()] == [2.0]
    with pytest.raises(ValueError, match="labels"):
        tally.count(ATTEMPTS, "x")


def test_requests_are_counted_by_route_not_by_path(
    client: TestClient, body: dict[str, Any]
) -> None:
    job = submit(client, body)
    client.get(job["links"]["self"])
    client.get(f"{JOBS}/job_{'0' * 32}")
    client.get("/secret/path")
    client.request("BREW", "/healthz")
    found = {
        tuple(value for _, value in labels): value
        for (name, labels), value in scrape(client).items()
        if name == "strucprune_http_requests_total"
    }
    assert found["POST", JOBS, "202"] == 1
    assert found["GET", f"{JOBS}/{{job_id}}", "200"] == 1
    assert found["GET", f"{JOBS}/{{job_id}}", "404"] == 1
    assert found["GET", "none", "404"] == 1
    assert not any("secret" in route or job["id"] in route for _, route, _ in found)
    assert {method for method, _, _ in found} <= {"GET", "POST", "other"}


def test_no_ledger_is_a_metric_too(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise LedgerUnavailable("down")

    monkeypatch.setattr("api.jobs.ledger.Ledger.counts", lambda self: fail())
    found = scrape(client)
    assert found["strucprune_ledger_up", ()] == 0
    assert not any(name == "strucprune_jobs" for name, _ in found)


def test_the_documentation_names_every_metric(client: TestClient) -> None:
    client.get(JOBS)
    answer = client.get("/metrics").text
    served = set(re.findall(r"^# TYPE (\w+) ", answer, re.MULTILINE))
    served = {name for name in served if not name.endswith("_created")}
    named = set(re.findall(r"^\| `(\w+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert served == named


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "alerts.yaml"])
def test_dashboard_and_alerts_ask_for_metrics_that_exist(name: str) -> None:
    text = (DOCS.parent / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        panels = json.loads(text)["panels"]
        text = "\n".join(each["expr"] for panel in panels for each in panel["targets"])
        queries = text.splitlines()
    else:
        groups = yaml.safe_load(text)["groups"]
        queries = [rule["expr"] for group in groups for rule in group["rules"]]
        text = "\n".join(queries)
    for query in queries:
        promql_parser.parse(query)
    asked = set(re.findall(r"\bstrucprune_\w+", text))
    named = set(re.findall(r"^\| `(\w+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert asked
    assert {re.sub(r"_bucket$", "", each) for each in asked} <= named
    if name.endswith(".json"):
        assert {re.sub(r"_bucket$", "", each) for each in asked} == named
