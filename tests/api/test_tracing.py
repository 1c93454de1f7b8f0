"""Traces from a request on, and log lines that name them. The worker's side has its own tests."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.app import create_app
from api.jobs import logs
from api.jobs.tracing import (
    TRACEPARENT,
    NoTracing,
    OtelTracing,
    accepted,
    check_configured,
    trace_id,
    tracing,
)
from api.services import Services
from api.settings import Settings
from strucprune_core.errors import InvalidSpec
from tests.support.routes import JOBS, elsewhere, submit

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(
    settings: Settings,
    keys: dict[str, str],
    flush: redis.Redis,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("api.app.tracing", lambda service: OtelTracing(provider))
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(create_app(settings), headers=headers) as client:
        yield client


def test_a_submission_joins_the_callers_trace_and_hands_it_on(
    traced: TestClient, spans: InMemorySpanExporter, body: dict[str, Any]
) -> None:
    job = submit(traced, body, traceparent=CALLER)
    (span,) = spans.get_finished_spans()
    assert span.name == f"POST {JOBS}"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 202
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert f"{span.context.trace_id:032x}" == trace_id(CALLER)
    services: Services = traced.app.state.services  # type: ignore[attr-defined]
    record = services.ledger.get(job["id"])
    assert record is not None
    assert record.traceparent == f"00-{trace_id(CALLER)}-{span.context.span_id:016x}-01"


def test_a_span_is_named_by_its_route_not_its_path(
    traced: TestClient, spans: InMemorySpanExporter
) -> None:
    traced.get(f"{JOBS}/job_secret", headers={"traceparent": "nonsense"})
    (span,) = spans.get_finished_spans()
    assert span.name == f"GET {JOBS}/{{job_id}}"
    assert span.parent is None


def test_without_configuration_there_is_a_trace_id_all_the_same(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    record = services.ledger.get(submit(client, body)["id"])
    assert record is not None
    assert accepted(record.traceparent) is not None
    record = services.ledger.get(submit(client, elsewhere(body), traceparent=CALLER)["id"])
    assert record is not None
    assert record.traceparent == CALLER


def test_a_failure_in_a_span_is_noted_without_its_words(spans: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with pytest.raises(ValueError, match="secret"), OtelTracing(provider).span("x", None):
        raise ValueError("secret")
    (span,) = spans.get_finished_spans()
    assert span.events[0].attributes is not None
    assert span.events[0].attributes["exception.type"] == "ValueError"
    assert span.events[0].attributes["exception.message"] == ""


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_standard_variables_switch_it_on(environment: dict[str, str], on: bool) -> None:
    found = tracing("test", environment)
    assert isinstance(found, OtelTracing if on else NoTracing)
    found.close()


def test_what_cannot_be_had_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSpec, match="Use otlp, console or none"):
        tracing("test", {"OTEL_TRACES_EXPORTER": "zipkin"})
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SystemExit, match=r"Cannot start: .*--group tracing"):
        check_configured()


def formatted(message: str, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("api.x", logging.INFO, "f.py", 1, message, (), **extra)
    line: dict[str, Any] = json.loads(logs.JsonFormatter().format(record))
    return line


def test_json_lines_name_job_and_trace() -> None:
    token = TRACEPARENT.set(CALLER)
    with logs.about_job("job_a"):
        line = formatted('two\nlines, "quoted"', exc_info=None)
    TRACEPARENT.reset(token)
    assert line["message"] == 'two\nlines, "quoted"'
    assert (line["level"], line["logger"]) == ("INFO", "api.x")
    assert (line["job_id"], line["trace_id"]) == ("job_a", trace_id(CALLER))
    assert line["time"].endswith("Z")


def test_json_lines_leave_out_what_there_is_not() -> None:
    assert set(formatted("x", exc_info=None)) == {"time", "level", "logger", "message"}
    try:
        raise ValueError("no")
    except ValueError:
        line = formatted("x", exc_info=sys.exc_info())
    assert line["exception"].endswith("ValueError: no")
