"""Retries and deletions: what is committed, what races, and who completes it after a death."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.jobs import sequel
from api.jobs.bucket_reads import MAX_MANIFEST_BYTES
from api.jobs.ends import commit, commit_end
from api.jobs.journal import Journal, Outcome, Sequel, Standing
from api.jobs.ledger import Ledger
from api.jobs.rebuild import rebuild, restore
from api.jobs.record import Claim, JobRecord
from api.jobs.sequel import delete, retry
from api.jobs.state import JobState
from strucprune_core.report.document import MANIFEST, REPORT_JSON
from strucprune_core.run.workspace import reservation_key
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from tests.support.claims import claim_job
from tests.support.records import journal_entry

ERROR = {"code": "invalid_text", "message": "too short", "retryable": False}


def job(ledger: Ledger) -> JobRecord:
    record = ledger.get("job_a")
    assert record is not None
    return record


def claimed(ledger: Ledger) -> Claim:
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    return claim


def end(
    journal: Journal, ledger: Ledger, claim: Claim, state: JobState = JobState.FAILED
) -> Outcome:
    """As a worker does it; the outcome that stands."""
    outcome = Outcome.model_validate(
        {
            "state": state,
            "error": ERROR if state is JobState.FAILED else None,
            "run": claim.run,
            "fence": claim.fence,
            "finished_at": 2000.0,
        }
    )
    return commit(journal, ledger, claim.job_id, outcome)


@pytest.fixture
def failed(journal: Journal, ledger: Ledger) -> JobRecord:
    """A job whose first run has failed."""
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    journal.workspace("job_a").put("units/solve-0/manifest.json", b"{}")
    end(journal, ledger, claimed(ledger))
    return job(ledger)


def test_a_retry_is_a_run_with_everything_still_to_come(
    journal: Journal, ledger: Ledger, failed: JobRecord
) -> None:
    assert retry(journal, ledger, failed)
    again = job(ledger)
    assert (again.state, again.run, again.attempt) == (JobState.QUEUED, 2, 0)
    assert (again.error, again.finished_at, again.started_at) == (None, None, None)
    assert again.fence == failed.fence
    assert ledger.queued() == 1
    assert journal.workspace("job_a").stat("units/solve-0/manifest.json") is not None
    claim = claimed(ledger)
    assert (claim.run, claim.attempt) == (2, 1)
    assert claim.fence > failed.fence
    assert end(journal, ledger, claim, JobState.SUCCEEDED).state is JobState.SUCCEEDED
    assert job(ledger).state is JobState.SUCCEEDED
    first = journal.read_outcome("job_a")
    assert first is not None
    assert first.state is JobState.FAILED


def test_a_retry_that_is_asked_for_twice_is_one(
    journal: Journal, ledger: Ledger, failed: JobRecord
) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: retry(journal, ledger, failed), range(8)))
    assert job(ledger).run == 2
    assert journal.standing("job_a") == Standing(asked=True, run=2)
    states = [event.data["state"] for event in ledger.events("job_a")]
    assert states == ["queued", "running", "failed", "queued"]


def test_success_cannot_be_retried(journal: Journal, ledger: Ledger) -> None:
    """Also if the ledger took it for cancelled, while a zombie committed the result."""
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    record = ledger.request_cancel("job_a")
    assert record is not None
    journal.write_outcome("job_a", Outcome(state=JobState.SUCCEEDED, fence=1, finished_at=5.0))
    assert not retry(journal, ledger, record)
    assert (job(ledger).state, job(ledger).run) == (JobState.SUCCEEDED, 1)
    assert journal.read_sequel("job_a", 1) is None


def test_an_end_that_only_the_ledger_knows_is_journalled_before_the_retry(
    journal: Journal, ledger: Ledger
) -> None:
    """Else a zombie of the first run could still commit that one, and so end the job twice."""
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    record = ledger.request_cancel("job_a")
    assert record is not None
    assert retry(journal, ledger, record)
    first = journal.read_outcome("job_a")
    assert first is not None
    assert first.state is JobState.CANCELLED


def test_a_zombie_of_an_earlier_run_commits_nothing(journal: Journal, ledger: Ledger) -> None:
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    zombie = claimed(ledger)
    end(journal, ledger, zombie)
    assert retry(journal, ledger, job(ledger))
    assert end(journal, ledger, zombie, JobState.SUCCEEDED).state is JobState.FAILED
    assert not ledger.finish("job_a", zombie.fence, JobState.SUCCEEDED)
    assert job(ledger).state is JobState.QUEUED
    successor = claimed(ledger)
    assert end(journal, ledger, zombie, JobState.SUCCEEDED).state is JobState.FAILED
    assert (job(ledger).state, job(ledger).fence) == (JobState.RUNNING, successor.fence)


def test_a_cancellation_ends_the_run_that_it_found(journal: Journal, ledger: Ledger) -> None:
    """Its second half, the journal, comes late: after somebody has retried the job."""
    journal.write_spec("job_a", journal_entry())
    ledger.create(journal_entry().as_new_job("job_a"))
    cancelled = ledger.request_cancel("job_a")
    assert cancelled is not None
    assert retry(journal, ledger, cancelled)
    commit_end(journal, ledger, cancelled)
    assert (job(ledger).state, job(ledger).run) == (JobState.QUEUED, 2)
    again = ledger.request_cancel("job_a")
    assert again is not None
    commit_end(journal, ledger, again)
    outcome = journal.read_outcome("job_a", 2)
    assert outcome is not None
    assert outcome.state is JobState.CANCELLED


@pytest.mark.parametrize("ended", [False, True])
def test_the_loss_of_the_ledger_loses_no_retry(
    journal: Journal, ledger: Ledger, failed: JobRecord, ended: bool
) -> None:
    retry(journal, ledger, failed)
    if ended:
        end(journal, ledger, claimed(ledger), JobState.SUCCEEDED)
    ledger._client.flushdb()
    assert rebuild(journal, ledger, open_store) == 1
    restored = job(ledger)
    assert restored.run == 2
    assert restored.state is (JobState.SUCCEEDED if ended else JobState.QUEUED)


@pytest.mark.parametrize("healer", ["client", "rebuild"])
def test_a_death_between_journal_and_ledger_is_healed(
    journal: Journal, ledger: Ledger, failed: JobRecord, healer: str
) -> None:
    journal.write_sequel("job_a", 1, Sequel(kind="retry", at=1.0))
    assert job(ledger).state is JobState.FAILED
    if healer == "client":
        assert retry(journal, ledger, job(ledger))
    else:
        rebuild(journal, ledger, open_store)
    assert (job(ledger).state, job(ledger).run) == (JobState.QUEUED, 2)


def test_many_retries(journal: Journal, ledger: Ledger, failed: JobRecord) -> None:
    for run in range(2, 13):
        assert retry(journal, ledger, job(ledger))
        end(journal, ledger, claimed(ledger))
        assert journal.standing("job_a") == Standing(asked=True, run=run, ended=True)
    ledger._client.flushdb()
    restore(journal, ledger, "job_a")
    assert (job(ledger).state, job(ledger).run) == (JobState.FAILED, 12)


def traces(journal: Journal) -> list[str]:
    return sorted(info.key for info in journal._store.list())


def test_a_deletion_leaves_the_outputs_and_a_trace(
    journal: Journal, ledger: Ledger, failed: JobRecord
) -> None:
    retry(journal, ledger, failed)
    end(journal, ledger, claimed(ledger))
    assert delete(journal, ledger, open_store, job(ledger))
    assert ledger.get("job_a") is None
    assert ledger.events("job_a") == []
    assert ledger.list("acme").jobs == []
    assert ledger.list("acme", label=("team", "nlp")).jobs == []
    assert ledger.list("acme", state=JobState.FAILED).jobs == []
    assert ledger.ended_longer_than(0, 10) == []
    assert traces(journal) == ["jobs/job_a/sequel-2.json"]
    assert [key for key in ledger._client.keys(f"{ledger._namespace}*") if "job_a" in key] == []


@pytest.mark.parametrize("step", ["remove", "forget"])
def test_a_death_during_a_deletion_is_healed(
    journal: Journal,
    ledger: Ledger,
    failed: JobRecord,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    class Died(BaseException):
        pass

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(journal if step == "remove" else ledger, step, die)
        with pytest.raises(Died):
            delete(journal, ledger, open_store, failed)
    assert not retry(journal, ledger, failed)
    rebuild(journal, ledger, open_store)
    assert ledger.get("job_a") is None
    assert traces(journal) == ["jobs/job_a/sequel-1.json"]


def test_nobody_restores_a_job_that_is_being_deleted(
    journal: Journal, ledger: Ledger, failed: JobRecord
) -> None:
    journal.write_sequel("job_a", 1, Sequel(kind="deletion", at=1.0))
    ledger._client.flushdb()
    assert not restore(journal, ledger, "job_a")
    assert ledger.get("job_a") is None


def test_a_restoration_that_a_deletion_overtakes_takes_itself_back(
    journal: Journal, ledger: Ledger, failed: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger._client.flushdb()
    create = ledger.create

    def create_late(new: object) -> bool:
        delete(journal, ledger, open_store, failed)
        return create(new)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "create", create_late)
    assert not restore(journal, ledger, "job_a")
    assert ledger.get("job_a") is None


def test_the_last_trace_goes_after_a_day(
    journal: Journal, ledger: Ledger, failed: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(journal, ledger, open_store, failed)
    rebuild(journal, ledger, open_store)
    assert traces(journal) == ["jobs/job_a/sequel-1.json"]
    monkeypatch.setattr(sequel, "TOMBSTONE_SECONDS", -1.0)
    rebuild(journal, ledger, open_store)
    assert traces(journal) == []


@pytest.mark.parametrize("seed", range(8))
def test_of_retry_and_deletion_one_happens(
    journal: Journal, ledger: Ledger, failed: JobRecord, seed: int
) -> None:
    acts = [
        lambda: ("retry", retry(journal, ledger, failed)),
        lambda: ("delete", delete(journal, ledger, open_store, failed)),
    ] * 3
    random.Random(seed).shuffle(acts)
    with ThreadPoolExecutor(6) as pool:
        done = {future.result() for future in [pool.submit(act) for act in acts]}
    assert done in ({("retry", True), ("delete", False)}, {("retry", False), ("delete", True)})
    record = ledger.get("job_a")
    assert (record is not None) == (("retry", True) in done)
    assert record is None or record.state is JobState.QUEUED


@pytest.fixture
def output(tmp_path: Path, journal: Journal, ledger: Ledger) -> LocalStore:
    """What a succeeded job has published, and a file of the user's beside it."""
    store = LocalStore(tmp_path / "out")
    spec = journal_entry().spec.model_copy(
        update={"output": journal_entry().spec.output.model_copy(update={"uri_prefix": store.uri})}
    )
    journal.write_spec("job_a", journal_entry().model_copy(update={"spec": spec}))
    ledger.create(journal_entry().as_new_job("job_a"))
    end(journal, ledger, claimed(ledger), JobState.SUCCEEDED)
    journal.workspace("job_a").put(reservation_key(store.uri), b"report of job_a")
    file = {"bytes": 1, "sha256": "0" * 64}
    names = ("model.safetensors", "tokenizer.json", REPORT_JSON)
    listed = ",".join(
        f'{{"name":"{name}","bytes":{file["bytes"]},"sha256":"{file["sha256"]}"}}' for name in names
    )
    for name in (*names, "notes.txt", "report.html"):
        store.put(name, b"report of job_a" if name == REPORT_JSON else b"x")
    store.put(MANIFEST, f'{{"format_version":1,"files":[{listed}]}}'.encode())
    return store


def left(store: LocalStore) -> list[str]:
    return [info.key for info in store.list()]


def test_outputs_go_if_asked(journal: Journal, ledger: Ledger, output: LocalStore) -> None:
    assert delete(journal, ledger, open_store, job(ledger), outputs=True)
    assert left(output) == ["notes.txt"]


def test_outputs_stay_otherwise(journal: Journal, ledger: Ledger, output: LocalStore) -> None:
    before = left(output)
    assert delete(journal, ledger, open_store, job(ledger))
    assert left(output) == before


def test_outputs_of_another_job_stay(journal: Journal, ledger: Ledger, output: LocalStore) -> None:
    output.put(REPORT_JSON, b"report of a later job at the same place")
    before = left(output)
    assert delete(journal, ledger, open_store, job(ledger), outputs=True)
    assert left(output) == before


def test_an_edited_manifest_leads_nowhere_else(
    journal: Journal, ledger: Ledger, output: LocalStore, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("x")
    entries = '{"name":"../precious","bytes":1,"sha256":"0"}'
    output.put(MANIFEST, f'{{"format_version":1,"files":[{entries}]}}'.encode())
    assert delete(journal, ledger, open_store, job(ledger), outputs=True)
    assert (tmp_path / "precious").exists()


def test_a_half_published_output_goes_whole(
    journal: Journal, ledger: Ledger, output: LocalStore
) -> None:
    output.delete(MANIFEST)
    assert delete(journal, ledger, open_store, job(ledger), outputs=True)
    assert left(output) == []


@pytest.mark.parametrize("manifest", [None, b"x" * (MAX_MANIFEST_BYTES + 1), b"{}"])
def test_a_prefix_that_was_filled_up_stays(
    journal: Journal,
    ledger: Ledger,
    output: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    manifest: bytes | None,
) -> None:
    """Neither are all its objects held in memory, nor removed for hours."""
    monkeypatch.setattr("api.jobs.published.MAX_OBJECTS", 20)
    for number in range(40):
        output.put(f"f{number}", b"x")
    if manifest is None:
        output.delete(MANIFEST)
    else:
        output.put(MANIFEST, manifest)
    before = left(output)
    assert delete(journal, ledger, open_store, job(ledger), outputs=True)
    assert left(output) == before


def test_a_large_document_is_not_read(
    journal: Journal, ledger: Ledger, output: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int | None]] = []
    found = LocalStore.read

    def noting(store: LocalStore, key: str, start: int = 0, length: int | None = None) -> bytearray:
        if store.root == output.root:
            read.append((key, length))
        return found(store, key, start, length)

    monkeypatch.setattr(LocalStore, "read", noting)
    for name in (MANIFEST, REPORT_JSON):
        with (output.root / name).open("wb") as file:
            file.truncate(1 << 34)
    assert delete(journal, ledger, open_store, job(ledger), outputs=True)
    assert read == []
