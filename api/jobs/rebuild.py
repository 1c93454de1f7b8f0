"""Agreement between journal and ledger; where they differ, the journal is right.

Everything here may be repeated, and may be done by several processes at once.
"""

from __future__ import annotations

import logging
import time

from api.jobs.journal import Journal, JournalEntry, Outcome
from api.jobs.ledger import Ledger
from strucprune_core.errors import StorageError, StorageUnavailable

_log = logging.getLogger(__name__)


def rebuild(journal: Journal, ledger: Ledger) -> int:
    """Enter every journalled job that the ledger does not know; return how many there were.

    A job that was running starts again from its workspace, with its attempts uncounted.

    Raises:
        StorageUnavailable: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    restored = 0
    for job_id in journal.job_ids():
        try:
            restored += ledger.get(job_id) is None and restore(journal, ledger, job_id)
        except StorageUnavailable:
            raise
        except StorageError as error:
            # One damaged entry must not keep all others from being restored.
            _log.error("cannot restore %s: %s", job_id, error)
    ledger.mark_intact()
    return restored


def restore(journal: Journal, ledger: Ledger, job_id: str) -> bool:
    """Enter one job from the journal. False if it is not journalled, or was in the ledger."""
    entry = journal.read_spec(job_id)
    if entry is None:
        return False
    created = enter_again(ledger, job_id, entry)
    if created:
        _log.warning("restored %s from the journal", job_id)
        settle_from_journal(journal, ledger, job_id)
    return created


def enter_again(ledger: Ledger, job_id: str, entry: JournalEntry) -> bool:
    """Enter a job that may have been in a ledger before. False if it is there now.

    Its fences start at the present second: above any that the lost ledger handed out, so a worker
    that still holds an old claim cannot pass for the holder of a new one.
    """
    return ledger.create(entry.as_new_job(job_id, fence=int(time.time())))


def settle_from_journal(journal: Journal, ledger: Ledger, job_id: str) -> bool:
    """Copy the job's outcome, if it has one, to the ledger. True if it has one."""
    outcome = journal.read_outcome(job_id)
    if outcome is None:
        return False
    _settle(ledger, job_id, outcome)
    return True


def commit(journal: Journal, ledger: Ledger, job_id: str, outcome: Outcome) -> Outcome:
    """Commit an outcome that no worker will, and make the ledger agree.

    Returns:
        The outcome that stands: this one, or an earlier one.
    """
    if not journal.write_outcome(job_id, outcome):
        outcome = journal.read_outcome(job_id) or outcome
    _settle(ledger, job_id, outcome)
    return outcome


def _settle(ledger: Ledger, job_id: str, outcome: Outcome) -> None:
    ledger.settle(
        job_id,
        outcome.state,
        finished_at=outcome.finished_at,
        error=outcome.error,
        summary=outcome.summary,
    )
