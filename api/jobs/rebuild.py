"""Agreement between journal and ledger; where they differ, the journal is right.

What is not an end (see `ends`) or a sequel of one (see `sequel`) is the ledger's alone. With the
loss of Redis a pause is forgotten, and so are a cancellation that a worker was asked for but has
not come to, the time that has passed of a deadline, and the log: such jobs are queued again.

Everything here may be repeated, and may be done by several processes at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from api.jobs.ends import commit_end, settle_from_journal
from api.jobs.journal import Journal, Standing
from api.jobs.ledger import Ledger
from api.jobs.sequel import OpenStore, complete, delete, deleted
from api.jobs.state import TERMINAL
from strucprune_core.errors import StorageError, StorageUnavailable

_log = logging.getLogger(__name__)


def rebuild(
    journal: Journal,
    ledger: Ledger,
    open_store: OpenStore,
    beat: Callable[[], None] = lambda: None,
    retention_seconds: float | None = None,
) -> int:
    """Make journal and ledger agree on every job; return how many the ledger did not know.

    A job that was running starts again from its workspace, with its attempts uncounted. Retries and
    deletions that somebody has died over are completed. What is in the archive stays there.

    Args:
        journal: What was asked, how it ended, what came after.
        ledger: Live state.
        open_store: Opens the places that jobs have published to, for deletions that include them.
        beat: Called after each job, since this may take minutes.
        retention_seconds: Archived jobs that have been over for this long are removed.

    Raises:
        StorageUnavailable: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    restored = 0
    keep_from = -math.inf if retention_seconds is None else ledger.now() - retention_seconds
    for job_id, standing in journal.jobs().items():
        try:
            if standing.archived_at is None:
                restored += _agree(journal, ledger, open_store, job_id, standing)
            elif standing.archived_at < keep_from:
                _remove_archived(journal, ledger, open_store, job_id, standing)
        except StorageUnavailable:
            raise
        except StorageError as error:
            # One damaged entry must not keep all others from being restored.
            _log.error("cannot restore %s: %s", job_id, error)
        beat()
    ledger.mark_intact()
    return restored


def _remove_archived(
    journal: Journal, ledger: Ledger, open_store: OpenStore, job_id: str, standing: Standing
) -> None:
    record = journal.read_archived(job_id, standing)
    if record is not None and delete(journal, ledger, open_store, record):
        _log.info("removed %s, over since %d", job_id, standing.archived_at)


def _agree(
    journal: Journal, ledger: Ledger, open_store: OpenStore, job_id: str, standing: Standing
) -> bool:
    """Make both agree on one job. True if the ledger did not know it.

    `standing` is how the job stood when it was listed, perhaps a while ago: later news of it only
    make the steps here idle.
    """
    record = ledger.get(job_id)
    if standing.run > (record.run if record is not None else 1):
        complete(journal, ledger, open_store, job_id, standing)
    if record is None:
        return restore(journal, ledger, job_id)
    if record.run != standing.run:
        return False
    if record.state in TERMINAL and not standing.ended:
        commit_end(journal, ledger, record)
    elif standing.ended and record.state not in TERMINAL:
        settle_from_journal(journal, ledger, job_id, record.run)
    return False


def restore(journal: Journal, ledger: Ledger, job_id: str) -> bool:
    """Enter one job from the journal. False if it is not there, is archived, or was in the ledger.

    Its fence is the present microsecond, as that of a claim is (see `claim.lua`): beside any that a
    lost ledger handed out, so neither a worker that still holds an old claim nor a client that has
    an old ETag can take the job for what it was.

    A deletion may happen meanwhile. It writes its sequel first and clears the ledger last; here the
    ledger is written first and the sequel read last. So whichever comes second sees the other.
    """
    standing = journal.standing(job_id)
    if not standing.asked or standing.archived_at is not None:
        return False
    if deleted(journal, job_id, standing):
        return False
    entry = journal.read_spec(job_id)
    if entry is None:
        return False
    new = entry.as_new_job(job_id, fence=int(ledger.now() * 1e6), run=standing.run)
    if not ledger.create(new):
        return False
    settled = settle_from_journal(journal, ledger, job_id, standing.run)
    if deleted(journal, job_id, journal.standing(job_id)):
        if not settled:
            # The outcome was among what is gone already.
            ledger.request_cancel(job_id)
        ledger.forget(job_id)
        return False
    _log.warning("restored %s from the journal", job_id)
    return True
