"""No two jobs that have not ended publish to one place, to one above it or to one below it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.inspection.inspectors import Inspectors
from api.jobs.journal import Journal
from api.jobs.ledger import RESERVATION_SECONDS, Finished, Ledger
from api.jobs.limits import TenantLimits
from api.jobs.rebuild import rebuild
from api.jobs.record import Claim, place_of
from api.jobs.state import JobState
from api.services import Services
from api.settings import Settings
from strucprune_core.storage.local import LocalStore
from tests.support.claims import claim_job
from tests.support.clock import advance
from tests.support.records import journal_entry, new_job
from tests.support.routes import JOBS, submit

OUT = "s3://bucket/team/out/"


def test_of_racing_submissions_one_gets_the_output(ledger: Ledger) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: ledger.reserve_output(f"job_{n}", OUT), range(32)))
    winners = [f"job_{n}" for n, other in enumerate(found) if other is None]
    assert len(winners) == 1
    assert {*found} == {None, winners[0]}


@pytest.mark.parametrize(
    "place", [OUT, "s3://bucket/team/", "s3://bucket/", "s3://bucket/team/out/0.3/"]
)
def test_places_that_contain_one_another_are_one(ledger: Ledger, place: str) -> None:
    assert ledger.reserve_output("job_a", OUT) is None
    assert ledger.reserve_output("job_b", place) == "job_a"
    assert ledger.output_holder(place) == "job_a"


@pytest.mark.parametrize(
    "place",
    ["s3://bucket/team/out-2/", "s3://bucket/team/ou/", "s3://other/team/out/", "/team/out/"],
)
def test_places_that_only_resemble_one_another_are_two(ledger: Ledger, place: str) -> None:
    assert ledger.reserve_output("job_a", OUT) is None
    assert ledger.output_holder(place) is None
    assert ledger.reserve_output("job_b", place) is None


def test_one_place_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert place_of(str(tmp_path / "link/out")) == place_of(str(tmp_path / "real/out/"))
    assert place_of("s3://bucket/team/out") == place_of("s3://bucket/team/out/") == OUT
    assert place_of("s3://bucket") == "s3://bucket/"


def test_a_reservation_that_nobody_uses_lapses(ledger: Ledger) -> None:
    assert ledger.reserve_output("job_a", OUT) is None
    advance(ledger, RESERVATION_SECONDS + 1)
    assert ledger.output_holder(OUT) is None
    assert ledger.reserve_output("job_b", OUT) is None
    assert ledger.reserve_output("job_a", OUT) == "job_b"


def test_a_job_has_its_output_until_it_ends(ledger: Ledger) -> None:
    assert ledger.reserve_output("job_a", OUT) is None
    ledger.create(new_job("job_a", output=OUT))
    advance(ledger, RESERVATION_SECONDS + 1)
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    assert ledger.output_holder(OUT) == "job_a"
    ledger.request_pause("job_a")
    ledger.release("job_a", claim.fence)
    assert ledger.output_holder(OUT) == "job_a"
    assert ledger.reserve_output("job_a", OUT) is None  # a replay finds its own
    ledger.free_output("job_a", OUT)  # which is no reservation any more
    assert ledger.output_holder(OUT) == "job_a"
    ledger.request_cancel("job_a")
    assert ledger.output_holder(OUT) is None


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_an_end_frees_the_output_and_a_retry_takes_it_again(
    ledger: Ledger, state: Finished
) -> None:
    ledger.create(new_job("job_a", output=OUT))
    claim = claim_job(ledger, "job_a", "w", 60)
    assert isinstance(claim, Claim)
    assert ledger.finish("job_a", claim.fence, state)
    assert ledger.output_holder(OUT) is None
    if state is JobState.FAILED:
        assert ledger.reopen("job_a", 1)
        assert ledger.output_holder(OUT) == "job_a"


def test_a_lost_redis_is_told_of_the_outputs_by_the_journal(
    ledger: Ledger, journal: Journal
) -> None:
    journal.write_spec("job_a", journal_entry())
    rebuild(journal, ledger, lambda uri: LocalStore(Path(uri)))
    place = place_of(journal_entry().spec.output.uri_prefix)
    assert ledger.output_holder(place) == "job_a"
    ledger.request_cancel("job_a")
    assert ledger.output_holder(place) is None


def test_two_jobs_that_the_journal_has_already_both_live(ledger: Ledger) -> None:
    for job_id in ("job_a", "job_b"):
        assert ledger.create(new_job(job_id, output=OUT))
    ledger.request_cancel("job_a")
    assert ledger.output_holder(OUT) == "job_b"


def _refused(client: TestClient, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = client.post(JOBS, json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "output_in_use"), answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/output/uri_prefix"
    assert "Choose a" in error["detail"]
    found: dict[str, Any] = error
    return found


def test_a_second_job_for_an_output_is_told_of_the_first(
    client: TestClient, body: dict[str, Any]
) -> None:
    first = submit(client, body, **{"Idempotency-Key": "first"})
    inside = {**body, "output": {"uri_prefix": f"{body['output']['uri_prefix']}/0.25"}}
    for second in (body, inside):
        assert first["id"] in _refused(client, second)["detail"]
        verdict = client.post(f"{JOBS}/validate", json=second).json()
        assert [issue["code"] for issue in verdict["issues"]] == ["output_in_use"]
    replay = client.post(JOBS, json=body, headers={"Idempotency-Key": "first"})
    assert (replay.status_code, replay.json()["id"]) == (202, first["id"])
    client.post(f"{JOBS}/{first['id']}/cancel")
    assert submit(client, body)["id"] != first["id"]


def test_racing_requests_without_a_key_make_one_job(
    client: TestClient, body: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(lambda _: client.post(JOBS, json=body), range(4))]
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409]


def test_a_tenant_learns_nothing_of_anothers_job(
    client: TestClient, keys: dict[str, str], body: dict[str, Any]
) -> None:
    ours = submit(client, body)
    detail = _refused(client, body, Authorization=f"Bearer {keys['rival']}")["detail"]
    assert detail == (
        "this output prefix is in use. Choose another prefix, neither above nor below this one."
    )
    assert ours["id"] not in detail


def test_a_retry_needs_its_output(client: TestClient, body: dict[str, Any]) -> None:
    first = submit(client, body)
    client.post(f"{JOBS}/{first['id']}/cancel")
    second = submit(client, body)
    answer = client.post(f"{JOBS}/{first['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "output_in_use")
    assert second["id"] in answer.json()["detail"]
    client.post(f"{JOBS}/{second['id']}/cancel")
    assert client.post(f"{JOBS}/{first['id']}/retry").status_code == 202
    assert first["id"] in _refused(client, body)["detail"]


@pytest.fixture
def limited(
    settings: Settings, keys: dict[str, str], flush: redis.Redis, inspectors: Inspectors
) -> Iterator[TestClient]:
    """The app, where a tenant may have one open job."""
    few = settings.model_copy(update={"limits": TenantLimits(open_jobs=1)})
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    with TestClient(create_app(few, inspectors), headers=headers) as client:
        yield client


def test_a_refusal_by_quota_leaves_the_output_free(
    limited: TestClient, body: dict[str, Any], tmp_path: Path
) -> None:
    submit(limited, body)
    other = {**body, "output": {"uri_prefix": str(tmp_path / "other")}}
    assert limited.post(JOBS, json=other).status_code == 429
    services: Services = limited.app.state.services  # type: ignore[attr-defined]
    assert services.ledger.output_holder(place_of(str(tmp_path / "other"))) is None
