"""What may follow the end of a job: a retry or a deletion, never both.

A job is a series of *runs*. Run 1 begins with the submission. Each run ends with one outcome in the
journal, written with put-if-absent, so an outcome cannot be changed. A retry is therefore not a
change to an ended run but a new run, with an outcome of its own. What follows run N is one
document, `sequel-N.json`, also written with put-if-absent: `retry` begins run N+1, `deletion` ends
the series. Of several retries and deletions at once, the first to be written happens, and the
others read it.

Order of a retry: outcome of run N (which may be in the ledger only so far), sequel N, ledger
(`reopen`), doorbell. After a crash in between, the client's next try or `rebuild` completes the
rest.

- *Kept layers.* All runs share the workspace, whose units belong to the job's fingerprint, not to a
  run. So a retry continues from the last finished unit, and its result has the same bytes as that
  of an undisturbed run.
- *Zombies.* A zombie is a worker that has lost its lease without noticing. One of run N commits
  under the number N, where an outcome exists already. Fences keep rising, so the ledger refuses it
  too. The files that it may still publish have the same bytes as those of run N+1.
- *Loss of Redis.* A restored job is in the run after its newest sequel, queued unless that run has
  an outcome.
- *Cancel.* A cancellation ends the run that it was requested in: its outcome has that run's number,
  and the ledger refuses to copy it (`settle`) into a later run.

Order of a deletion: outcome, sequel N, published files (if requested), workspace, outcomes, spec,
ledger. Once the sequel exists, the job is not restored any more. After a crash, the next request or
`rebuild` completes the rest. The sequel stays for `TOMBSTONE_SECONDS`: the job's id is derived from
its idempotency key, and a delayed request must not run the job again. A zombie that reaches the
storage but not the ledger may publish until its lease is over. Its files then belong to no record.
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
        journal: Commits the decision.
        ledger: Queues the job.
        record: The job, which has ended.

    Returns:
        True if the next run exists, begun by this call or an earlier one. False if there will be
        none: the run has succeeded after all, or the job was deleted.

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
    """Remove a job that has ended.

    Args:
        journal: Commits the decision.
        ledger: The live state.
        open_store: Opens the output prefix of the job.
        record: The job, which has ended.
        outputs: Whether to remove the files that it published, too.

    Returns:
        False if the job was retried instead.

    Raises:
        StorageError: the journal or the output does not answer. The next try removes the rest.
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
    """Complete what the newest sequel has begun.

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
    """Whether the job was deleted, perhaps not completely yet."""
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
        remove_published(output, journal.workspace(entry.workspace_of or job_id))
    journal.remove(job_id, run)
    ledger.forget(job_id)
