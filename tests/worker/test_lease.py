"""A lease outlives short outages of the ledger, but not its own time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def append_layers(self, job_id: str, fence: int, news: Sequence[Mapping[str, Any]]) -> bool:
        if not self.up:
            raise LedgerUnavailable("down")
        return True


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


def test_what_the_ledger_does_not_hear_is_to_be_told_again() -> None:
    ledger = FlakyLedger()
    lease = Lease(cast(Ledger, ledger), Claim("job", 1, 1), 60)
    ledger.up = False
    assert not lease.report_layers([{"index": [0]}])
    ledger.up = True
    assert lease.report_layers([{"index": [0]}])
