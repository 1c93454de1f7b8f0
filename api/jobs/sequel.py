"""What may come after the end of a job: it runs again, or it is removed. Never both.

A job is a series of *runs*. Run 1 begins with the submission; each ends with one outcome in the
journal, put there if absent, so an outcome can be neither changed nor taken back. A retry is
therefore not a change to an ended run but a new run, with an outcome of its own still to come. What
follows run N is one document, `sequel-N.json`, put there if absent: `retry` begins run N+1,
`deletion` ends the series. Of any number of retries and deletions that race, the first to be
written happens, and all the others see it.

Order of a retry: outcome of run N (it may so far be known to the ledger only), sequel N, ledger
(`reopen`), doorbell. A death between any two is completed by the client's next try, or by
`rebuild`.

- *Kept layers.* All runs share the workspace, whose units belong to the job's fingerprint, not to a
  run. So a retry goes on from the last finished unit and ends with the bytes of an undisturbed run.
- *Zombies.* A worker of run N that lost its lease unawares commits under the number that it
  claimed, N, where an outcome lies already. Fences go on counting, so the ledger does not hear it
  either. What it may still copy to the output are the very bytes that run N+1 copies.
- *Loss of Redis.* A restored job is in the newest run that a sequel leads to, queued unless that
  run's outcome is there.
- *Cancel.* A cancellation ends the run it found: its outcome is committed under that run's number,
  and the ledger refuses to copy it (`settle`) into a later one.

Order of a deletion: outcome, sequel N, then what was published (if asked), workspace, outcomes,
spec, ledger. From the sequel on nobody restores the job; a death is completed by the next request
or by `rebuild`. The sequel stays for `TOMBSTONE_SECONDS`: the job's id is derived from its
idempotency key, and a request that was underway for long must not run the job again. A zombie that
reaches the storage but not the ledger may publish until its lease is over; its files then belong to
nobody's record.
"""

from __future__ import annotations

from collections.abc import Callable

from api.jobs.ends import commit_end, settle_from_journal
from api.jobs.journal import Journal, Sequel, Standing
from api.jobs.ledger import Ledger
from api.jobs.published import remove_published
from api.jobs.record import JobRecord
from api.jobs.state import JobState
from strucprune_core.storage.store import Store

# How long the idempotency key of a deleted job cannot be used again.
TOMBSTONE_SECONDS = 24 * 3600.0

OpenStore = Callable[[str], Store]


def retry(journal: Journal, ledger: Ledger, record: JobRecord) -> bool:
    """Begin the run after one that failed or was cancelled.

    Args:
        journal: Where the decision is committed.
        ledger: Where the job is queued.
        record: The job, over.

    Returns:
        True if the next run exists, this call's or an earlier one's. False if there will be none:
        the run had succeeded after all, or the job has been deleted.

    Raises:
        StorageError: the journal does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    if commit_end(journal, ledger, record).state is JobState.SUCCEEDED:
        return False
    sequel = _write(journal, record, Sequel(kind="retry", at=ledger.now()))
    if sequel.kind != "retry":
        return False
    ledger.reopen(record.id, record.run)
    return True


def delete(
    journal: Journal,
    ledger: Ledger,
    open_store: OpenStore,
    record: JobRecord,
    *,
    outputs: bool = False,
) -> bool:
    """Remove a job that is over.

    Args:
        journal: Where the decision is committed.
        ledger: Live state.
        open_store: Opens the place that the job has published to.
        record: The job, over.
        outputs: Whether what it has published goes too.

    Returns:
        False if the job was retried instead.

    Raises:
        StorageError: the journal or the output does not answer; what is left goes with the next
            try.
        LedgerUnavailable: the ledger does not answer.
    """
    commit_end(journal, ledger, record)
    asked = Sequel(kind="deletion", at=ledger.now(), outputs=outputs)
    sequel = _write(journal, record, asked)
    if sequel.kind != "deletion":
        return False
    _remove(journal, ledger, open_store, record.id, record.run, outputs=outputs or sequel.outputs)
    return True


def complete(
    journal: Journal, ledger: Ledger, open_store: OpenStore, job_id: str, standing: Standing
) -> None:
    """Do what the newest sequel says, as far as it is not done yet.

    Raises:
        StorageError: the journal or an output does not answer.
        LedgerUnavailable: the ledger does not answer.
    """
    run = standing.run - 1
    sequel = journal.read_sequel(job_id, run)
    if sequel is None:
        return
    if sequel.kind == "retry":
        settle_from_journal(journal, ledger, job_id, run)
        ledger.reopen(job_id, run)
        return
    spent = ledger.now() - sequel.at > TOMBSTONE_SECONDS
    if standing.asked or spent or ledger.get(job_id) is not None:
        _remove(journal, ledger, open_store, job_id, run, outputs=sequel.outputs)
    if spent:
        journal.remove_sequel(job_id, run)


def deleted(journal: Journal, job_id: str, standing: Standing) -> bool:
    """Whether the job has been deleted, if perhaps not yet completely."""
    if standing.run == 1:
        return False
    sequel = journal.read_sequel(job_id, standing.run - 1)
    return sequel is not None and sequel.kind == "deletion"


def _write(journal: Journal, record: JobRecord, sequel: Sequel) -> Sequel:
    """The sequel that stands: this one, or an earlier one."""
    if journal.write_sequel(record.id, record.run, sequel):
        return sequel
    return journal.read_sequel(record.id, record.run) or sequel


def _remove(
    journal: Journal,
    ledger: Ledger,
    open_store: OpenStore,
    job_id: str,
    run: int,
    *,
    outputs: bool,
) -> None:
    entry = journal.read_spec(job_id)
    if outputs and entry is not None:
        output = open_store(entry.spec.output.uri_prefix)
        remove_published(output, journal.workspace(job_id))
    journal.remove(job_id, run)
    ledger.forget(job_id)
