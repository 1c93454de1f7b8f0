"""What a worker that starts does about attempts whose worker died with them, for lack of memory.

See `attempt_mark`. Without this their leases would expire, and the next attempts would do the same
again until none are left.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

from api.jobs.meters import Tally
from api.jobs.record import Claim
from strucprune_core.errors import StrucPruneError
from worker.attempt_mark import AttemptMark
from worker.conclusion import Desk, retry_smaller
from worker.execution import Services
from worker.failures import crash
from worker.scratch import Scratch
from worker.settings import Settings
from worker.stop import Drain

_log = logging.getLogger(__name__)


def conclude_left(marks: Sequence[AttemptMark], settings: Settings) -> None:
    """Let the jobs of these attempts, which ran out of memory, go on with a smaller plan.

    If ledger or journal do not answer, their leases expire as if nothing were known.
    """
    if not marks:
        return
    try:
        with Services.connected(settings) as services:
            for mark in marks:
                conclude_attempt(mark, services, settings)
    except StrucPruneError as error:
        _log.warning("attempts that ran out of memory are left to their leases: %s", error)


def conclude_attempt(mark: AttemptMark, services: Services, settings: Settings) -> None:
    """Conclude one attempt, unless the job has had another one since.

    Raises:
        StrucPruneError: ledger or journal did not answer.
    """
    record = services.ledger.get(mark.job_id)
    if record is None or record.fence != mark.fence:
        return
    _log.warning("%s: attempt %d and its worker ran out of memory", record.id, record.attempt)
    claim = Claim(record.id, record.fence, record.attempt, record.run)
    desk = Desk(
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
    retry_smaller(desk, failure.as_dict())
