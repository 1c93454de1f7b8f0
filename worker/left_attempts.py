"""Concludes attempts that ran out of memory together with their worker, when a worker starts.

See `attempt_mark`. Otherwise their leases would expire, and the next attempts would run out of
memory in the same way until none are left.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

from api.jobs.meters import Tally
from api.jobs.record import Claim
from strucprune_core.errors import StrucPruneError
from worker.attempt_mark import AttemptMark
from worker.conclusion import Attempt, retry_smaller
from worker.execution import Services
from worker.failures import crash
from worker.presence import own_name
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stop import Drain

_log = logging.getLogger(__name__)


def conclude_left(marks: Sequence[AttemptMark], settings: Settings) -> None:
    """Queue the jobs of these attempts, which ran out of memory, again with a smaller plan.

    If ledger or journal do not answer, the leases expire instead.
    """
    if not marks:
        return
    try:
        with Services.connected(settings, own_name()) as services:
            for mark in marks:
                conclude_attempt(mark, services, settings)
    except StrucPruneError as error:
        _log.warning("attempts that ran out of memory not concluded, leases expire: %s", error)


def conclude_attempt(mark: AttemptMark, services: Services, settings: Settings) -> None:
    """Conclude one attempt, unless the job has had a later one.

    Raises:
        StrucPruneError: ledger or journal did not answer.
    """
    record = services.ledger.get(mark.job_id)
    if record is None or record.fence != mark.fence:
        return
    _log.warning(
        "job %s: attempt %d and its worker were killed for memory", record.id, record.attempt
    )
    claim = Claim(record.id, record.fence, record.attempt, record.run)
    attempt = Attempt(
        services.ledger,
        services.journal,
        services.doorbell,
        settings,
        record,
        claim,
        Tally(services.ledger),
        services.tracing,
        Scratch(settings.scratch_directory, Drain()),
    )
    failure = crash(-signal.SIGKILL, record.progress, oom_killed=True)
    retry_smaller(attempt, failure.as_dict())
