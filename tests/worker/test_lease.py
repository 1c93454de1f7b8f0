"""A lease outlives short outages of the ledger, but not its own time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import Claim, Signal
from worker.lease import Lease


class FlakyLedger:
    def __init__(self) -> None:
        self.up = True

    def heartbeat(
        self, job_id: str, fence: int, lease: float, progress: Mapping[str, Any] | None
    ) -> Signal:
        if not self.up:
            raise LedgerUnavailable("down")
        return Signal.CONTINUE


def test_an_outage_longer_than_the_lease_loses_it() -> None:
    ledger, now = FlakyLedger(), [0.0]
    lease = Lease(cast(Ledger, ledger), Claim("job", 1, 1), 60, clock=lambda: now[0])
    now[0] = 30
    assert lease.beat() is Signal.CONTINUE
    ledger.up = False
    now[0] = 89
    assert lease.beat() is Signal.CONTINUE
    now[0] = 91
    assert lease.beat() is Signal.LOST
