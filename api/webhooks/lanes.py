"""Limits deliveries: a few of each tenant at once, and none to a receiver that does not answer.

A receiver that never answers takes ten seconds of a sender for each message. Other messages of its
tenant wait meanwhile; those of other tenants do not.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# Deliveries at once: in all, and of one tenant.
AT_ONCE = 32
PER_TENANT = 2
# A job without a place tries again after this time at the earliest, and at the latest.
_FIRST_TURN_SECONDS = 0.1
_LAST_TURN_SECONDS = 300.0
# Weight of the newest delivery in the moving average of a tenant's delivery times.
_WEIGHT = 0.3

# After this many failures in a row, nothing is sent to a receiver for a while, each time twice as
# long.
FAILURES = 3
_FIRST_PAUSE_SECONDS = 30.0
_LAST_PAUSE_SECONDS = 600.0
# Receivers kept: those that failed last.
_RECEIVERS = 4096

Receiver = tuple[str, str, int]
"""Tenant, host and port. A tenant's failures at a shared host are its own."""


class Lanes:
    """Counts deliveries of each tenant. Safe to share between threads.

    Args:
        at_once: Deliveries at once.
        per_tenant: Deliveries of one tenant at once.
        clock: Unix seconds, by the clock of the outbox.
    """

    def __init__(
        self,
        at_once: int = AT_ONCE,
        per_tenant: int = PER_TENANT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._at_once = at_once
        self._per_tenant = per_tenant
        self._lock = threading.Lock()
        self._busy: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._last_turn: dict[str, float] = {}

    def enter(self, tenant: str) -> bool:
        """Take a place, if there is one."""
        with self._lock:
            if self._busy.total() >= self._at_once or self._busy[tenant] >= self._per_tenant:
                return False
            self._busy[tenant] += 1
            return True

    def leave(self, tenant: str, seconds: float) -> None:
        """Give the place back, after a delivery that took this long."""
        with self._lock:
            self._busy[tenant] -= 1
            before = self._seconds.get(tenant, seconds)
            self._seconds[tenant] = (1 - _WEIGHT) * before + _WEIGHT * seconds

    def next_turn(self, tenant: str) -> float:
        """When a job that found no place should try again (unix seconds).

        The jobs of a tenant are spread by the time that its deliveries take, so that they do not
        crowd out those of others.
        """
        now = self._clock()
        with self._lock:
            pace = self._seconds.get(tenant, 0.0) / self._per_tenant
            turn = max(now + _FIRST_TURN_SECONDS, self._last_turn.get(tenant, 0.0) + pace)
            self._last_turn[tenant] = min(turn, now + _LAST_TURN_SECONDS)
            return self._last_turn[tenant]


@dataclass(slots=True)
class _Trouble:
    failures: int
    closed_until: float = 0.0


class Breakers:
    """Pauses deliveries to receivers that do not answer. Safe to share between threads.

    Args:
        first_pause_seconds: Length of the first pause, after `FAILURES` failures.
        clock: Seconds.
    """

    def __init__(
        self,
        first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_pause_seconds = first_pause_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._troubles: OrderedDict[Receiver, _Trouble] = OrderedDict()

    def wait_seconds(self, receiver: Receiver) -> float:
        """How long to wait before sending; 0 to send now.

        After a pause, one message is tried. Others wait until it succeeds.
        """
        with self._lock:
            trouble = self._troubles.get(receiver)
            if trouble is None or trouble.failures < FAILURES:
                return 0.0
            left = trouble.closed_until - self._clock()
            if left > 0:
                return left
            trouble.closed_until = self._clock() + self._first_pause_seconds
            return 0.0

    def answered(self, receiver: Receiver) -> None:
        """Note that the receiver answered."""
        with self._lock:
            self._troubles.pop(receiver, None)

    def failed(self, receiver: Receiver) -> None:
        """Note that the receiver did not answer, or took very long."""
        with self._lock:
            trouble = self._troubles.setdefault(receiver, _Trouble(0))
            trouble.failures += 1
            doublings = max(0, min(trouble.failures - FAILURES, 16))
            pause = min(self._first_pause_seconds * 2.0**doublings, _LAST_PAUSE_SECONDS)
            trouble.closed_until = self._clock() + pause
            self._troubles.move_to_end(receiver)
            while len(self._troubles) > _RECEIVERS:
                self._troubles.popitem(last=False)
