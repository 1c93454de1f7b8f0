"""The worker goes on with the trace of the submission: an attempt, and below it each unit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.jobs.tracing import OtelTracing
from tests.worker.conftest import FAKE_SOLVE, Bench
from worker.execution import Services, run_next

ROOT = Path(__file__).parents[2]

SUBMITTED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_attempts_and_units_are_spans_of_the_submissions_trace(bench: Bench) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    job_id = bench.submit()
    bench.ledger._client.hset(bench.ledger._key("job", job_id), "traceparent", SUBMITTED)
    services = Services(bench.ledger, bench.journal, bench.doorbell, OtelTracing(provider))
    solve = (sys.executable, "-S", str(FAKE_SOLVE), "succeed")
    run_next(services, bench.settings, bench.drain, bench.scratch(), solve)
    unit, attempt = spans.get_finished_spans()
    assert (unit.name, attempt.name) == ("unit curve", "attempt")
    assert {f"{each.context.trace_id:032x}" for each in (unit, attempt)} == {SUBMITTED[3:35]}
    assert attempt.parent is not None
    assert f"{attempt.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert unit.parent is not None
    assert unit.parent.span_id == attempt.context.span_id
    assert unit.start_time is not None
    assert unit.end_time is not None
    assert (unit.start_time, unit.end_time) == (1000 * 10**9, 1002_500_000_000)
    assert attempt.attributes is not None
    assert attempt.attributes["job.id"] == job_id
    assert attempt.attributes["job.state"] == "succeeded"


def test_the_solve_logs_as_it_is_told(tmp_path: Path) -> None:
    spec: dict[str, Any] = {
        "model": {"uri": "/nowhere"},
        "output": {"uri_prefix": str(tmp_path / "output")},
        "pruning": {"sparsity": 0.25},
        "calibration": {"uri": "/nowhere.txt"},
    }
    request = {
        "job_id": "job_x",
        "spec": spec,
        "workspace_uri": str(tmp_path / "workspace"),
        "scratch": str(tmp_path),
        "traceparent": SUBMITTED,
        "log_format": "json",
    }
    done = subprocess.run(
        [sys.executable, "-m", "worker.solve"],
        cwd=ROOT,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    line = json.loads(done.stderr.splitlines()[-1])
    assert (line["job_id"], line["trace_id"]) == ("job_x", SUBMITTED[3:35])
    assert line["level"] == "ERROR"
