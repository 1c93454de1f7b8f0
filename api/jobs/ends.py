"""Commits the ends of runs to the journal, and copies them to the ledger.

What ends a run decides which of the two is written first:

- A result, or a failure of the job itself: the journal. The first outcome there is the commit, also
  against a worker that has lost its lease without noticing. Then the ledger is updated.
- A cancellation of a job that no worker holds, a deadline that passes meanwhile, or the last
  attempt used up: the ledger. Only there, one step can both check the condition (no worker holds
  the job, no attempts are left) and end the job. An outcome journalled before that could cancel a
  job that a worker claims at this moment. Then the journal is updated. A crash in between leaves an
  end that only the ledger has; the next `rebuild` journals it.

Every step may be repeated, and several processes may do it at once. No step can end another run
than its own: outcomes are stored by run number, and `Ledger.settle` checks it.
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
    """Commit an outcome to the journal, and make the ledger agree.

    Returns:
        The outcome that stands: this one, or an earlier one.
    """
    if not journal.write_outcome(job_id, outcome):
        outcome = journal.read_outcome(job_id, outcome.run) or outcome
    _settle(ledger, job_id, outcome)
    return outcome


def commit_end(journal: Journal, ledger: Ledger, record: JobRecord) -> Outcome:
    """Commit to the journal an end that only the ledger has so far.

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
