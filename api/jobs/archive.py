"""The archive: moves ended jobs from the ledger to the journal, so that Redis does not fill up.

The ledger keeps a limited number of jobs and bytes for each tenant (`TenantLimits.kept_jobs`,
`kept_bytes`). The records of the oldest ended jobs are written to the journal and removed from the
ledger. An archived job can still be read, retried and deleted by its id. It is in no list, and its
events and log are gone.

Order of archiving: outcome, archived record, ledger. A crash in between leaves a job in both
places, which is archived again. An archived run is never restored to the ledger. A retry makes
another run, which is restored as usual (see `sequel`).
"""

from __future__ import annotations

from api.jobs.ends import commit_end
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger
from api.jobs.rebuild import restore
from api.jobs.record import JobRecord
from api.jobs.state import TERMINAL


def archive(journal: Journal, ledger: Ledger, record: JobRecord) -> bool:
    """Move an ended job out of the ledger. False if it has not ended, or runs again.

    Raises:
        StorageError: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    if record.state not in TERMINAL:
        return False
    stands = commit_end(journal, ledger, record)
    if stands.state != record.state:
        return False  # The ledger has just been corrected; the next pass archives the job.
    journal.write_archived(record)
    return ledger.forget(record.id, record.run)


def recall(journal: Journal, ledger: Ledger, job_id: str) -> JobRecord | None:
    """A job from the ledger, from the archive, or from the journal alone.

    In the last case, it is restored to the ledger.

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
