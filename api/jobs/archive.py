"""The archive: jobs that are over and have left the ledger, so that Redis does not fill up.

The ledger keeps so many jobs and bytes of each tenant (`TenantLimits.kept_jobs`, `kept_bytes`). Of
what is over, the oldest is written to the journal as it is and removed from the ledger. It can
still be read, retried and deleted by its id; it is in no list, and its events and log are gone.

Order of archiving: outcome, archived record, ledger. A death in between leaves a job that is in
both places, which is archived again. Nobody restores an archived run to the ledger; a retry makes
another run, which is restored as ever (see `sequel`).
"""

from __future__ import annotations

from api.jobs.ends import commit_end
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger
from api.jobs.rebuild import restore
from api.jobs.record import JobRecord
from api.jobs.state import TERMINAL


def archive(journal: Journal, ledger: Ledger, record: JobRecord) -> bool:
    """Move a job that is over out of the ledger. False if it is not over (any more).

    Raises:
        StorageError: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    if record.state not in TERMINAL:
        return False
    stands = commit_end(journal, ledger, record)
    if stands.state != record.state:
        return False  # The ledger has just been told; the next look sees it.
    journal.write_archived(record)
    return ledger.forget(record.id, record.run)


def recall(journal: Journal, ledger: Ledger, job_id: str) -> JobRecord | None:
    """A job, wherever it is: in the ledger, in the archive, or in the journal alone.

    The last is restored to the ledger.

    Raises:
        StorageError: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    record = ledger.get(job_id)
    if record is not None:
        return record
    archived = journal.read_archived(job_id, journal.standing(job_id))
    if archived is not None:
        return archived
    restore(journal, ledger, job_id)
    return ledger.get(job_id)
