"""OpenTelemetry traces from a request to each unit of work. Off unless configured.

    request ─> job (ledger) ─> attempt (worker) ─> units (reported by the solve)

The ledger keeps a `traceparent` (W3C Trace Context) with the job, which links request and attempt.
It is not in the Celery message: that may be lost, doubled, or sent by a reconciler that has no
request. The solve does not trace: it reports when each unit began and how long it took, and its
supervisor makes spans of that.

Spans are exported if the standard variables say where to (`OTEL_EXPORTER_OTLP_ENDPOINT`, or
`OTEL_TRACES_EXPORTER=otlp` or `console`). That needs `pip install --group tracing`. Without it, a
request still has a trace id, its own or the caller's, which connects its log lines.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from strucprune_core.errors import InvalidSpec

# The span that the present code runs in, for log lines and for jobs that are submitted.
TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)

Attributes = Mapping[str, str | int | float | bool]

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_REMEDY = "Install what is needed (pip install --group tracing), or unset it."


@dataclass(slots=True)
class Span:
    """A span that has not ended.

    Attributes:
        traceparent: Its id, for whoever continues the trace.
        name: Its name, which may be changed until it ends.
        attributes: Its attributes, which may be added to until it ends.
    """

    traceparent: str
    name: str
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)


class Tracing(Protocol):
    """Makes and exports spans. Safe to share between threads."""

    def span(
        self, name: str, parent: str | None, attributes: Attributes | None = None
    ) -> AbstractContextManager[Span]:
        """A span around a block of code, which sets `TRACEPARENT` meanwhile."""

    def record(
        self, name: str, parent: str, began_at: float, seconds: float, attributes: Attributes
    ) -> None:
        """Record a span that has ended. `began_at` is unix seconds."""

    def close(self) -> None:
        """Export what is left."""


class NoTracing:
    """Exports nothing, but makes trace ids."""

    @contextmanager
    def span(
        self, name: str, parent: str | None, attributes: Attributes | None = None
    ) -> Iterator[Span]:
        """See `Tracing.span`."""
        own = parent or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
        with _within(own):
            yield Span(own, name, dict(attributes or {}))

    def record(
        self, name: str, parent: str, began_at: float, seconds: float, attributes: Attributes
    ) -> None:
        """See `Tracing.record`."""

    def close(self) -> None:
        """See `Tracing.close`."""


class OtelTracing:
    """Spans of OpenTelemetry's SDK.

    Args:
        provider: An `opentelemetry.sdk.trace.TracerProvider`; closed with this.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("strucprune")

    @contextmanager
    def span(
        self, name: str, parent: str | None, attributes: Attributes | None = None
    ) -> Iterator[Span]:
        """See `Tracing.span`."""
        started = self._tracer.start_span(name, context=_context(parent))
        found = started.get_span_context()
        flags = int(found.trace_flags)
        own = Span(f"00-{found.trace_id:032x}-{found.span_id:016x}-{flags:02x}", name)
        own.attributes.update(attributes or {})
        try:
            with _within(own.traceparent):
                yield own
        except Exception as error:
            started.record_exception(error, attributes={"exception.message": ""})
            raise
        finally:
            started.update_name(own.name)
            started.set_attributes(own.attributes)
            started.end()

    def record(
        self, name: str, parent: str, began_at: float, seconds: float, attributes: Attributes
    ) -> None:
        """See `Tracing.record`."""
        began_ns = int(began_at * 1e9)
        span = self._tracer.start_span(
            name, context=_context(parent), start_time=began_ns, attributes=dict(attributes)
        )
        span.end(end_time=began_ns + int(seconds * 1e9))

    def close(self) -> None:
        """See `Tracing.close`."""
        self._provider.shutdown()


def tracing(service: str, environment: Mapping[str, str] = os.environ) -> Tracing:
    """The tracing that the standard `OTEL_*` variables ask for.

    Args:
        service: `service.name`, unless OTEL_SERVICE_NAME says another.
        environment: The variables.

    Raises:
        InvalidSpec: they ask for an exporter that is not installed or not known.
    """
    exporter = environment.get(_EXPORTER) or ""
    if not exporter and any(environment.get(name) for name in _ENDPOINTS):
        exporter = "otlp"
    if exporter in ("", "none") or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NoTracing()
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidSpec(f"{_EXPORTER} asks for traces", remedy=_REMEDY) from error
    name = environment.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    return OtelTracing(provider)


def check_configured() -> None:
    """End the program with one line if the `OTEL_*` variables cannot be followed."""
    try:
        tracing("strucprune").close()
    except InvalidSpec as error:
        sys.exit(f"Cannot start: {error}")


def accepted(traceparent: str | None) -> str | None:
    """A traceparent from a request, if it is valid."""
    return traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None


def trace_id(traceparent: str | None) -> str | None:
    """The id that all spans of a trace share."""
    return traceparent.split("-")[1] if traceparent else None


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if name != "otlp":
        raise InvalidSpec(f"{_EXPORTER}={name} is not known", remedy="Use otlp, console or none.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise InvalidSpec(f"{_EXPORTER} asks for otlp", remedy=_REMEDY) from error
    return OTLPSpanExporter()


def _context(parent: str | None) -> Any:
    """OpenTelemetry's context of a parent in another process, or of none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": parent} if parent else {}
    return TraceContextTextMapPropagator().extract(carrier, Context())


@contextmanager
def _within(traceparent: str) -> Iterator[None]:
    token = TRACEPARENT.set(traceparent)
    try:
        yield
    finally:
        TRACEPARENT.reset(token)
