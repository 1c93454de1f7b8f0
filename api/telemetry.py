"""Metrics for Prometheus: those of the service, from the ledger, and this process's own requests.

    GET /metrics

Every API process shows the same jobs and totals (see `jobs.meters`), so queries take their `max`,
not their `sum`; requests are counted by each process for itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.meters import METERS, Meter, parse_key

# The upper buckets are for long-polls and event streams.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Telemetry:
    """The metrics of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "strucprune_http_requests",
            "Requests answered, by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "strucprune_http_request_seconds",
            "Time from a request to the end of its answer.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )

    def watch(self, ledger: Ledger) -> None:
        """Report what is in this ledger, too."""
        self.registry.register(LedgerCollector(ledger))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class LedgerCollector(Collector):
    """Reads the ledger when Prometheus asks."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering the collector does not read the ledger."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Jobs, queues and totals; only `strucprune_ledger_up 0` while the ledger is down."""
        up = GaugeMetricFamily("strucprune_ledger_up", "Whether the job ledger answers.")
        try:
            found = [*self._gauges(), *_families(self._ledger.totals())]
            up.add_metric([], 1)
        except LedgerUnavailable:
            found = []
            up.add_metric([], 0)
        return [up, *found]

    def _gauges(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("strucprune_jobs", "Jobs by state.", labels=["state"])
        for state, count in self._ledger.counts().items():
            jobs.add_metric([state], count)
        waiting = GaugeMetricFamily(
            "strucprune_queue_jobs", "Jobs that wait for a worker.", labels=["priority"]
        )
        age = GaugeMetricFamily(
            "strucprune_queue_age_seconds",
            "How long the oldest waiting job has waited; 0 if none waits.",
            labels=["priority"],
        )
        for priority, queue in self._ledger.queues().items():
            waiting.add_metric([priority], queue.jobs)
            age.add_metric([priority], queue.age_seconds)
        helpers = GaugeMetricFamily(
            "strucprune_helpers",
            "Workers that help with jobs that others lead, and more that could help.",
            labels=["state"],
        )
        for help_state, count in self._ledger.seats.counts().items():
            helpers.add_metric([help_state], count)
        return [jobs, waiting, age, helpers]


class CountRequests:
    """Counts requests by the route that answered, never by path: paths hold ids."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        # If no answer begins.
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.monotonic() - began
            self._telemetry.answered(_method(scope), route_of(scope), status, seconds)


def route_of(scope: Scope) -> str:
    """The path template of the route that answered a request; "none" if no route did."""
    return getattr(scope.get("route"), "path", None) or "none"


def _method(scope: Scope) -> str:
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return scope["method"] if scope["method"] in known else "other"


def _families(totals: dict[str, float]) -> Iterable[Metric]:
    """The totals of the ledger as Prometheus metrics."""
    parts: dict[tuple[str, tuple[str, ...]], dict[str, float]] = defaultdict(dict)
    for key, value in totals.items():
        name, part, labels = parse_key(key)
        parts[name, labels][part] = value
    for meter in METERS:
        found = {labels: each for (name, labels), each in parts.items() if name == meter.name}
        yield _histogram(meter, found) if meter.buckets else _counter(meter, found)


def _counter(meter: Meter, found: dict[tuple[str, ...], dict[str, float]]) -> Metric:
    family = CounterMetricFamily(meter.name, meter.help, labels=meter.labels)
    if not meter.labels:
        found = found or {(): {"": 0.0}}
    for labels, parts in sorted(found.items()):
        family.add_metric(labels, parts[""])
    return family


def _histogram(meter: Meter, found: dict[tuple[str, ...], dict[str, float]]) -> Metric:
    family = HistogramMetricFamily(meter.name, meter.help, labels=meter.labels)
    for labels, parts in sorted(found.items()):
        buckets, below = [], 0.0
        for bound in (*meter.buckets, float("inf")):
            below += parts.get(f"le={bound}", 0.0)
            buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
        family.add_metric(labels, buckets, sum_value=parts.get("sum", 0.0))
    return family
