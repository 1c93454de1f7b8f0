"""Metrics of workers and reconcilers, which are counted in the ledger.

Workers have no metrics port. A worker runs one short process after another (Celery replaces its
child, a solve ends with its job). A scraper that comes every 15 s would miss what short ones
counted, and each would need a port and a discovery rule. Instead, workers and reconcilers add to
counters in the ledger, and every API process shows the same totals at `/metrics`. If Redis loses
its data, the totals start from zero, which Prometheus treats as a restart. Each API process counts
its own requests (`api/telemetry.py`).

docs/metrics.md lists all names.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from strucprune_core.errors import StrucPruneError

_log = logging.getLogger(__name__)

_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_GIB = float(2**30)
_BYTES = tuple(_GIB * factor for factor in (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256))


@dataclass(frozen=True, slots=True)
class Meter:
    """One metric.

    Attributes:
        name: Its Prometheus name; for a counter without `_total`.
        help: One sentence.
        labels: Names of its labels.
        buckets: Upper bounds of a histogram; empty for a counter.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def kind(self) -> Literal["counter", "histogram"]:
        """Its Prometheus type."""
        return "histogram" if self.buckets else "counter"


ATTEMPTS = Meter("strucprune_attempts", "Attempts begun by workers.")
ENDED = Meter(
    "strucprune_attempts_ended",
    "Attempts by how they ended: the job's state afterwards, and the error's code if any.",
    ("state", "code"),
)
LEASES_LOST = Meter(
    "strucprune_lease_losses",
    "Leases lost: noticed by the worker, or expired and taken back by a reconciler.",
    ("noticed_by",),
)
DUPLICATES = Meter(
    "strucprune_duplicate_doorbells", "Doorbells that a worker answered when no job was queued."
)
BLOCKED = Meter(
    "strucprune_blocked_doorbells",
    "Doorbells answered when all queued jobs were of tenants at their limit of running jobs.",
)
SCRATCH_UNFIT = Meter(
    "strucprune_scratch_unfit",
    "Checks of workers' scratch directories that found too little space for a job, or found that "
    "no file can be written.",
    ("reason",),
)
HELP = Meter(
    "strucprune_help",
    "Times that a worker helped with a job that another leads, by how that ended.",
    ("end",),
)
UNIT_SECONDS = Meter(
    "strucprune_unit_seconds", "Time of finished units of work.", ("kind",), _SECONDS
)
PEAK_BYTES = Meter(
    "strucprune_unit_peak_memory_bytes",
    "Peak memory of finished units of work, on the host or the device.",
    ("place",),
    _BYTES,
)
BYTES_MOVED = Meter(
    "strucprune_moved_bytes", "Bytes that solves read from or wrote to object stores.", ("to",)
)
METERS = (
    ATTEMPTS,
    ENDED,
    LEASES_LOST,
    DUPLICATES,
    BLOCKED,
    SCRATCH_UNFIT,
    HELP,
    UNIT_SECONDS,
    PEAK_BYTES,
    BYTES_MOVED,
)


class Totals(Protocol):
    """Keeps totals: the ledger."""

    def add_totals(self, amounts: Mapping[str, float]) -> None:
        """Add to totals by key; all or nothing."""


class Tally:
    """Collects amounts and adds them to the totals in one call. Not for several threads.

    Args:
        totals: The totals to add to.
    """

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._amounts: Counter[str] = Counter()

    def count(self, meter: Meter, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        self._add("", meter, labels, by)

    def observe(self, meter: Meter, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        for bound in (*meter.buckets, math.inf):
            if value <= bound:
                self._add(f"le={bound}", meter, labels, 1.0)
                break
        self._add("sum", meter, labels, value)

    def flush(self) -> None:
        """Add all amounts to the totals. If the ledger does not answer, keep them for later."""
        if not self._amounts:
            return
        try:
            self._totals.add_totals(self._amounts)
        except StrucPruneError as error:
            _log.warning("cannot add to the metrics, will try again: %s", error)
            return
        self._amounts.clear()

    def _add(self, part: str, meter: Meter, labels: tuple[str, ...], amount: float) -> None:
        if len(labels) != len(meter.labels):
            raise ValueError(f"{meter.name} has the labels {meter.labels}, not {labels}")
        self._amounts[key_of(meter, labels, part)] += amount  # type: ignore[assignment]


def key_of(meter: Meter, labels: tuple[str, ...], part: str = "") -> str:
    """The key of a total.

    `part`: "" for a counter. "sum", or "le=BOUND" for the count of that bucket alone.
    """
    return json.dumps([meter.name, part, *labels])


def parse_key(key: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, part and labels of a key."""
    name, part, *labels = json.loads(key)
    return name, part, tuple(labels)
