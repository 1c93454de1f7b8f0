"""Further sizes from the measurements of a finished job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.jobs.ends import commit
from api.jobs.journal import Outcome
from api.jobs.rebuild import restore
from api.jobs.sequel import delete
from api.jobs.state import JobState
from api.services import Services
from strucprune_core.run.workspace import OWNER
from strucprune_core.storage.local import LocalStore
from tests.support.claims import claim_job
from tests.support.routes import JOBS, elsewhere, submit


@pytest.fixture
def sized(body: dict[str, Any]) -> dict[str, Any]:
    """A job of several sizes."""
    return {**body, "pruning": {"sizes": [0.25]}}


def end(services: Services, job_id: str, state: JobState) -> None:
    claim_job(services.ledger, job_id, "w", 60)
    outcome = Outcome.model_validate({"state": state, "finished_at": services.ledger.now()})
    commit(services.journal, services.ledger, job_id, outcome)


@pytest.fixture
def finished(client: TestClient, services: Services, sized: dict[str, Any]) -> dict[str, Any]:
    """A job of several sizes that has succeeded and left a workspace."""
    job = submit(client, sized)
    services.journal.workspace(job["id"]).put(OWNER, b"{}")
    end(services, job["id"], JobState.SUCCEEDED)
    return job


def further(sized: dict[str, Any], job: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**elsewhere(sized), "pruning": {"sizes": [0.5]}, "extends": job["id"], **changes}


def refusals(client: TestClient, body: dict[str, Any]) -> dict[str, str]:
    """What a submission is refused for, by field; `validate` says the same."""
    answer = client.post(JOBS, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "cannot_extend"), answer.text
    errors = answer.json()["errors"]
    assert client.post(f"{JOBS}/validate", json=body).json()["issues"] == errors
    return {error["pointer"]: error["detail"] for error in errors}


def test_it_works_in_the_first_ones_workspace(
    client: TestClient, services: Services, sized: dict[str, Any], finished: dict[str, Any]
) -> None:
    job = submit(client, further(sized, finished))
    assert job["extends"] == finished["id"]
    assert job["spec"]["pruning"]["sizes"] == [0.5]
    record = services.ledger.get(job["id"])
    assert record is not None
    assert record.workspace_id == finished["id"]
    end(services, job["id"], JobState.SUCCEEDED)
    # One that extends it in turn works in the same place.
    third = submit(client, further(sized, job, pruning={"sizes": [0.6]}))
    record = services.ledger.get(third["id"])
    assert record is not None
    assert (record.extends, record.workspace_id) == (job["id"], finished["id"])


def test_a_lost_ledger_is_told_of_it_by_the_journal(
    client: TestClient,
    services: Services,
    sized: dict[str, Any],
    finished: dict[str, Any],
    flush: Any,
) -> None:
    job = submit(client, further(sized, finished))
    flush.flushdb()
    assert restore(services.journal, services.ledger, job["id"])
    record = services.ledger.get(job["id"])
    assert record is not None
    assert (record.extends, record.workspace_id) == (finished["id"], finished["id"])


def test_a_repeated_submission_is_the_same_job(
    client: TestClient, sized: dict[str, Any], finished: dict[str, Any]
) -> None:
    body, key = further(sized, finished), {"Idempotency-Key": "once"}
    assert submit(client, body, **key)["id"] == submit(client, body, **key)["id"]
    del body["extends"]
    assert client.post(JOBS, json=body, headers=key).json()["code"] == "idempotency_key_reused"


def test_what_has_not_succeeded_is_refused(
    client: TestClient, services: Services, sized: dict[str, Any]
) -> None:
    job = submit(client, sized)
    assert (
        "is queued; only one that has succeeded"
        in refusals(client, further(sized, job))["/extends"]
    )
    end(services, job["id"], JobState.FAILED)
    assert "is failed" in refusals(client, further(sized, job))["/extends"]


def test_a_job_of_one_size_is_refused(
    client: TestClient, services: Services, body: dict[str, Any], sized: dict[str, Any]
) -> None:
    job = submit(client, body)
    end(services, job["id"], JobState.SUCCEEDED)
    assert (
        "kept nothing that others could share" in refusals(client, further(sized, job))["/extends"]
    )


def test_one_size_is_no_list_of_sizes(
    client: TestClient, sized: dict[str, Any], finished: dict[str, Any]
) -> None:
    told = refusals(client, further(sized, finished, pruning={"sparsity": 0.5}))
    assert "pruning.sizes" in told["/pruning/sizes"]


def test_all_else_must_be_as_it_was(
    client: TestClient, sized: dict[str, Any], finished: dict[str, Any]
) -> None:
    other = further(sized, finished, pruning={"sizes": [0.5], "solver": "admm"})
    other["calibration"] = {**sized["calibration"], "samples": 3}
    other["name"] = "further"  # Which may differ.
    told = refusals(client, other)
    assert set(told) == {"/pruning/solver", "/calibration/samples"}
    assert "(4)" in told["/calibration/samples"]
    free = further(sized, finished, labels={"team": "x"}, runtime={"priority": "low"})
    assert submit(client, free)["labels"] == {"team": "x"}


def test_without_the_workspace_there_is_nothing_to_share(
    client: TestClient, services: Services, sized: dict[str, Any], finished: dict[str, Any]
) -> None:
    services.journal.workspace(finished["id"]).delete(OWNER)
    assert "is gone" in refusals(client, further(sized, finished))["/extends"]


def test_anothers_job_is_none(
    client: TestClient, keys: dict[str, str], sized: dict[str, Any], finished: dict[str, Any]
) -> None:
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    theirs, nobodys = (
        client.post(JOBS, json=further(sized, {"id": job_id}), headers=rival).json()["errors"]
        for job_id in (finished["id"], "job_" + "0" * 32)
    )
    assert theirs == nobodys
    assert "no such job" in theirs[0]["detail"]


@pytest.mark.parametrize("first", [0, 1])
def test_the_workspace_goes_with_the_last_of_its_jobs(
    client: TestClient,
    services: Services,
    sized: dict[str, Any],
    finished: dict[str, Any],
    first: int,
    tmp_path: Path,
) -> None:
    job = submit(client, further(sized, finished))
    end(services, job["id"], JobState.SUCCEEDED)
    workspace = services.journal.workspace(finished["id"])
    ids = [finished["id"], job["id"]]
    for job_id, left in ((ids[first], True), (ids[1 - first], False)):
        assert client.delete(f"{JOBS}/{job_id}").status_code == 204
        assert (workspace.stat(OWNER) is not None) == left
    assert [*LocalStore(tmp_path / "state").list("sharing/")] == []


def test_a_submission_that_came_to_nothing_keeps_no_workspace(
    client: TestClient, services: Services, finished: dict[str, Any]
) -> None:
    services.journal.share_workspace(finished["id"], "job_" + "1" * 32)
    record = services.ledger.get(finished["id"])
    assert record is not None
    assert delete(services.journal, services.ledger, services.stores.open, record)
    assert services.journal.workspace(finished["id"]).stat(OWNER) is None
