"""Ends of runs: committed to the journal by whoever ends them, and copied from it to the ledger.

Who writes first depends on what ends a run:

- A result, or a failure of the job itself: journal first. The first outcome in the journal is the
  commit, which also a worker that lost its lease unawares must win; the ledger is told.
- A cancellation of a waiting job, a deadline that passes while nobody works, or the last attempt
  used up: ledger first. Only there one step both asks (is the job held? are attempts left?) and
  answers; an outcome in the journal before that answer could cancel a job that a worker takes at
  this very moment. The journal is told. Whoever dies in between leaves an end that only the ledger
  knows, which the next `rebuild` journals.

Everything here may be repeated, and may be done by several processes at once. Nothing here can end
another run than the one it is about: outcomes lie under their run's number, and `Ledger.settle`
asks for it.
"""

from __future__ import annotations

from api.jobs.journal import Journal, Outcome
from api.jobs.ledger import Ledger
from api.jobs.record import JobRecord


def settle_from_journal(journal: Journal, ledger: Ledger, job_id: str, run: int) -> bool:
    """Copy the run's outcome, if it has one, to the ledger. True if it has one."""
    outcome = journal.read_outcome(job_id, run)
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
        outcome = journal.read_outcome(job_id, outcome.run) or outcome
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
            "run": record.run,
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
        run=outcome.run,
        error=outcome.error,
        summary=outcome.summary,
    )
