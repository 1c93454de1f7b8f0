from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.jobs.ends import commit, settle_from_journal
from api.jobs.journal import Journal, Outcome, Standing
from api.jobs.ledger import Ledger
from api.jobs.rebuild import rebuild, restore
from api.jobs.record import Claim
from api.jobs.state import JobState
from strucprune_core.errors import StorageError
from strucprune_core.storage.open import open_store
from tests.support.claims import claim_job
from tests.support.records import journal_entry


def outcome(state: JobState = JobState.SUCCEEDED, fence: int = 1) -> Outcome:
    return Outcome.model_validate(
        {"state": state, "summary": {"x": 1}, "fence": fence, "finished_at": 2000.25}
    )


def test_spec_is_written_once(journal: Journal) -> None:
    assert journal.read_spec("job_a") is None
    assert journal.write_spec("job_a", journal_entry())
    assert not journal.write_spec("job_a", journal_entry("rival"))
    assert journal.read_spec("job_a") == journal_entry()


def test_writing_the_same_again_succeeds(journal: Journal) -> None:
    """As when the answer to a write got lost and the write was repeated."""
    assert journal.write_outcome("job_a", outcome())
    assert journal.write_outcome("job_a", outcome())


def test_the_first_outcome_stands(journal: Journal) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(lambda n: journal.write_outcome("job_a", outcome(fence=n)), range(1, 9))
        )
    assert won.count(True) == 1
    assert journal.read_outcome("job_a") == outcome(fence=won.index(True) + 1)


def test_jobs_are_the_journalled_ones(journal: Journal) -> None:
    journal.write_spec("job_a", journal_entry())
    journal.write_spec("job_b", journal_entry())
    journal.write_outcome("job_b", outcome())
    journal.write_outcome("job_c", outcome())
    journal.workspace("job_a").put("spec.json", b"{}")
    assert journal.jobs() == {
        "job_a": Standing(asked=True),
        "job_b": Standing(asked=True, ended=True),
        "job_c": Standing(asked=False, ended=True),
    }
    assert journal.standing("job_b") == Standing(asked=True, ended=True)
    assert journal.standing("job") == Standing(asked=False)


def test_a_damaged_entry_is_told(journal: Journal, tmp_path: Path) -> None:
    journal.write_spec("job_a", journal_entry())
    (tmp_path / "state/jobs/job_a/spec.json").write_text("{")
    with pytest.raises(StorageError, match="job_a"):
        journal.read_spec("job_a")


def test_rebuild_restores_what_the_ledger_lost(journal: Journal, ledger: Ledger) -> None:
    journal.write_spec("job_a", journal_entry())
    journal.write_spec("job_b", journal_entry(created_at=1001.0))
    journal.write_outcome("job_b", outcome())
    assert rebuild(journal, ledger, open_store) == 2
    assert ledger.is_intact()
    waiting, done = ledger.get("job_a"), ledger.get("job_b")
    assert waiting is not None
    assert (waiting.state, waiting.priority, waiting.max_attempts) == ("queued", "high", 5)
    assert (waiting.created_at, waiting.labels) == (1000.5, {"team": "nlp"})
    assert done is not None
    assert (done.state, done.summary, done.finished_at) == ("succeeded", {"x": 1}, 2000.25)
    assert rebuild(journal, ledger, open_store) == 0
    assert ledger.get("job_b") == done


def test_rebuild_goes_on_past_a_damaged_entry(
    journal: Journal, ledger: Ledger, tmp_path: Path
) -> None:
    for job_id in ("job_a", "job_b"):
        journal.write_spec(job_id, journal_entry())
    (tmp_path / "state/jobs/job_a/spec.json").write_text("{")
    assert rebuild(journal, ledger, open_store) == 1
    assert ledger.get("job_b") is not None


@pytest.mark.parametrize("cancelled", [True, False])
def test_rebuild_journals_an_end_that_only_the_ledger_knows(
    journal: Journal, ledger: Ledger, cancelled: bool
) -> None:
    """As when whoever ended the job died before it wrote the outcome."""
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    if cancelled:
        ledger.request_cancel("job_a")
    else:
        while isinstance(claim := claim_job(ledger, "job_a", "w", 60), Claim):
            ledger.retry_later("job_a", claim.fence, {"code": "solve_crashed"})
    record = ledger.get("job_a")
    assert rebuild(journal, ledger, open_store) == 0
    written = journal.read_outcome("job_a")
    assert record is not None
    assert written is not None
    assert (written.state, written.finished_at) == (record.state, record.finished_at)
    assert written.error == (None if cancelled else {"code": "solve_crashed"})
    assert ledger.get("job_a") == record


def test_rebuild_ends_a_job_whose_outcome_the_ledger_missed(
    journal: Journal, ledger: Ledger
) -> None:
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    journal.write_outcome("job_a", outcome())
    rebuild(journal, ledger, open_store)
    record = ledger.get("job_a")
    assert record is not None
    assert (record.state, record.summary) == ("succeeded", {"x": 1})


def test_fences_of_a_lost_ledger_are_never_handed_out_again(
    journal: Journal, ledger: Ledger
) -> None:
    journal.write_spec("job_a", journal_entry())
    restore(journal, ledger, "job_a")
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    assert claim.fence > 1_000_000
    assert not ledger.finish("job_a", 1, JobState.SUCCEEDED)


def test_commit_yields_to_an_earlier_outcome(journal: Journal, ledger: Ledger) -> None:
    ledger.create(journal_entry().as_new_job("job_a"))
    journal.write_outcome("job_a", outcome())
    stands = commit(journal, ledger, "job_a", outcome(JobState.CANCELLED, fence=0))
    assert stands == outcome()
    record = ledger.get("job_a")
    assert record is not None
    assert record.state == JobState.SUCCEEDED


def test_settle_from_journal(journal: Journal, ledger: Ledger) -> None:
    ledger.create(journal_entry().as_new_job("job_a"))
    assert not settle_from_journal(journal, ledger, "job_a", 1)
    journal.write_outcome("job_a", outcome(JobState.FAILED))
    assert settle_from_journal(journal, ledger, "job_a", 1)
    record = ledger.get("job_a")
    assert record is not None
    assert record.state == JobState.FAILED
