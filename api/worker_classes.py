"""Classes of workers: those of one pool with the same device, and how fast such a device is.

Workers measure their device when they start (`worker.presence`). A class stays known for a month
after its last worker, since pools may be scaled to none. Times are predicted for each class.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import WorkerRecord
from strucprune_core.plan.rates import DeviceRates

# Forms ask for times as people type. Workers come and go more slowly.
KEPT_SECONDS = 5.0
# With each class a job's time is computed once more.
MOST_CLASSES = 8


@dataclass(frozen=True)
class WorkerClass:
    """Workers that are alike.

    Attributes:
        name: Of the pool, with the device where that is needed to tell classes apart.
        pool: Of the deployment; "" if its workers name none.
        workers: How many are there, perhaps none.
        rates: The median of what they measured.
    """

    name: str
    pool: str
    workers: int
    rates: DeviceRates


class WorkerClasses:
    """A service's classes, read from the ledger every few seconds. Threads may share it.

    Args:
        ledger: Where workers show themselves.
        clock: Monotonic seconds.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._clock = ledger, clock
        self._lock = threading.Lock()
        self._found: list[WorkerClass] = []
        self._read_at = float("-inf")

    def all(self) -> list[WorkerClass]:
        """Those with the most workers first; none if the ledger does not answer."""
        with self._lock:
            if self._clock() - self._read_at >= KEPT_SECONDS:
                try:
                    self._found = classes_of(self._ledger.workers(), self._ledger.past_classes())
                except LedgerUnavailable:
                    self._found = []
                self._read_at = self._clock()
            return self._found


def classes_of(
    workers: Iterable[WorkerRecord], past: Iterable[tuple[str, DeviceRates]] = ()
) -> list[WorkerClass]:
    """The classes of workers that are there; those that could measure nothing are left out.

    Args:
        workers: They.
        past: Pools and rates of workers that were there.
    """
    gone = {(pool, rates.device, rates.threads): rates for pool, rates in past}
    alike: dict[tuple[str, str, int], list[WorkerRecord]] = {}
    for worker in workers:
        if worker.rates is not None:
            mark = (worker.pool, worker.rates.device, worker.rates.threads)
            alike.setdefault(mark, []).append(worker)
    names = _names([*{**gone, **alike}])
    found = [
        WorkerClass(names[mark], mark[0], len(each), _median(each)) for mark, each in alike.items()
    ]
    found += [
        WorkerClass(names[mark], mark[0], 0, rates)
        for mark, rates in gone.items()
        if mark not in alike
    ]
    return sorted(found, key=lambda one: (-one.workers, one.name))[:MOST_CLASSES]


def _names(marks: list[tuple[str, str, int]]) -> dict[tuple[str, str, int], str]:
    """The pool alone where its workers are alike."""
    pools = [pool for pool, _, _ in marks]
    return {
        (pool, device, threads): pool
        if pool and pools.count(pool) == 1
        else ", ".join(filter(None, (pool, device, _threads(threads))))
        for pool, device, threads in marks
    }


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _median(workers: list[WorkerRecord]) -> DeviceRates:
    measured = [worker.rates for worker in workers if worker.rates is not None]
    first = measured[0]
    read = [
        worker.read_bytes_per_second
        for worker in workers
        if worker.read_bytes_per_second is not None
    ]
    products = {
        precision: {
            size: statistics.median(
                each.products[precision][size]
                for each in measured
                if size in each.products.get(precision, {})
            )
            for size in sizes
        }
        for precision, sizes in first.products.items()
    }
    memory = statistics.median(each.memory_bytes_per_second for each in measured)
    return first.model_copy(
        update={
            "products": products,
            "memory_bytes_per_second": memory,
            "read_bytes_per_second": statistics.median(read) if read else None,
        }
    )
