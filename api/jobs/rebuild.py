"""Agreement between journal and ledger; where they differ, the journal is right.

Who writes first depends on what ends a job:

- A result, or a failure of the job itself: journal first. The first outcome in the journal is the
  commit, which also a worker that lost its lease unawares must win; the ledger is told.
- A cancellation of a waiting job, or the last attempt used up: ledger first. Only there one step
  both asks (is the job held? are attempts left?) and answers; an outcome in the journal before that
  answer could cancel a job that a worker takes at this very moment. The journal is told. Whoever
  dies in between leaves an end that only the ledger knows, which the next `rebuild` journals.

What is not an end is the ledger's alone. With the loss of Redis a pause is forgotten, and so is a
cancellation that a worker was asked for but has not come to: such jobs are queued again.

Everything here may be repeated, and may be done by several processes at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from api.jobs.journal import Journal, JournalEntry, Outcome
from api.jobs.ledger import Ledger
from api.jobs.record import JobRecord
from api.jobs.state import TERMINAL
from strucprune_core.errors import StorageError, StorageUnavailable

_log = logging.getLogger(__name__)


def rebuild(journal: Journal, ledger: Ledger, beat: Callable[[], None] = lambda: None) -> int:
    """Make journal and ledger agree on every job; return how many the ledger did not know.

    A job that was running starts again from its workspace, with its attempts uncounted.

    Args:
        journal: Every job that was ever accepted.
        ledger: What may have lost some.
        beat: Called after each job, since this may take minutes.

    Raises:
        StorageUnavailable: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    restored = 0
    for job_id, ended in journal.jobs().items():
        try:
            restored += _agree(journal, ledger, job_id, ended=ended)
        except StorageUnavailable:
            raise
        except StorageError as error:
            # One damaged entry must not keep all others from being restored.
            _log.error("cannot restore %s: %s", job_id, error)
        beat()
    ledger.mark_intact()
    return restored


def _agree(journal: Journal, ledger: Ledger, job_id: str, *, ended: bool) -> bool:
    """Make both agree on one job. True if the ledger did not know it.

    `ended`: whether an outcome was in the journal when it was listed, perhaps a while ago.
    """
    record = ledger.get(job_id)
    if record is None:
        return restore(journal, ledger, job_id)
    if record.state in TERMINAL and not ended:
        commit_end(journal, ledger, record)
    elif ended and record.state not in TERMINAL:
        settle_from_journal(journal, ledger, job_id)
    return False


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


def commit_end(journal: Journal, ledger: Ledger, record: JobRecord) -> Outcome:
    """Commit an end that so far only the ledger knows.

    Returns:
        The outcome that stands: this one, or an earlier one.
    """
    outcome = Outcome.model_validate(
        {
            "state": record.state,
            "error": record.error,
            "summary": record.summary,
            "fence": record.fence,
            "finished_at": record.finished_at or record.updated_at,
        }
    )
    return commit(journal, ledger, record.id, outcome)


def _settle(ledger: Ledger, job_id: str, outcome: Outcome) -> None:
    ledger.settle(
        job_id,
        outcome.state,
        finished_at=outcome.finished_at,
        error=outcome.error,
        summary=outcome.summary,
    )
