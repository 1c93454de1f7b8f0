"""Agreement between journal and ledger; where they differ, the journal is right.

The journal has the ends of runs (see `ends`) and what followed them (see `sequel`). All else is in
the ledger only. A loss of Redis therefore loses pauses, cancellations that a worker has not carried
out yet, the time that has passed of a deadline, and logs. Such jobs are queued again.

Every step may be repeated, and several processes may do it at once.
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
    """Make journal and ledger agree on every job. Returns how many jobs the ledger did not have.

    A restored job that was running starts again from its workspace, and its attempts count anew.
    Interrupted retries and deletions are completed. Archived jobs stay in the archive.

    Args:
        journal: The durable documents of jobs.
        ledger: The live state.
        open_store: Opens output prefixes, for deletions that include published files.
        beat: Called after each job, since a rebuild may take minutes.
        retention_seconds: Archived jobs that ended this long ago are removed.

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
            # A damaged document of one job must not keep the others from being restored.
            _log.error("job %s: cannot be restored: %s", job_id, error)
        beat()
    ledger.mark_intact()
    return restored


def _remove_archived(
    journal: Journal, ledger: Ledger, open_store: OpenStore, job_id: str, standing: Standing
) -> None:
    record = journal.read_archived(job_id, standing)
    if record is not None and delete(journal, ledger, open_store, record):
        _log.info("job %s: removed, ended at %d", job_id, standing.archived_at)


def _agree(
    journal: Journal, ledger: Ledger, open_store: OpenStore, job_id: str, standing: Standing
) -> bool:
    """Make journal and ledger agree on one job. True if the ledger did not have it.

    `standing` is how the job stood when it was listed, perhaps a while ago. If it has changed
    since, the steps here do nothing.
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
    """Enter one job from the journal into the ledger.

    Its fence is the present microsecond, like that of a claim (see `claim.lua`), and so differs
    from every fence of a lost ledger. Neither an old claim nor a client's old ETag matches the job.

    A deletion may happen meanwhile. It writes its sequel first and clears the ledger last. This
    writes the ledger first and reads the sequel last. So whichever comes second sees the other.

    Returns:
        False if the journal does not have the job, it is archived or deleted, or it was in the
        ledger already.
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
            # The deletion has removed the outcome already.
            ledger.request_cancel(job_id)
        ledger.forget(job_id)
        return False
    _log.warning("job %s: restored from the journal", job_id)
    return True
