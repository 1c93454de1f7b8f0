"""Hostile models are judged in helper processes, within limits, and at nobody else's expense."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.inspection.channel import MAX_HEADER_BYTES, Channel, ChannelBroken, TooLate
from api.inspection.inspectors import HelperLimits, InspectionUnavailable, Inspectors
from api.inspection.serving import MAX_READ_BYTES, HelperCalls
from api.inspection.verdict import Verdict, judge, revived
from api.job_limits import OverLimit
from api.jobs.limits import TenantLimits
from strucprune_core.errors import InvalidCheckpoint, Mend, ObjectNotFound, StrucPruneError
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_store
from strucprune_core.storage.store import Store
from tests.support.hostile_model import MANY_EXPERTS, make_hostile_model

JOBS = "/v1/pruning-jobs"
LIMITS = TenantLimits()


def spec_of(body: dict[str, Any], **changes: Any) -> JobSpec:
    return JobSpec.model_validate({**body, **changes})


def judged(pool: Inspectors, spec: JobSpec, opened: Callable[[str], Store] = open_store) -> Verdict:
    return pool.judge(spec, LIMITS, opened)


@pytest.fixture
def many_experts(tmp_path: Path, tiny_model: Path) -> Path:
    """As hostile as the bounds let a model be."""
    return make_hostile_model(
        tmp_path / "experts", tiny_model, shards=2, header_bytes=4_000_000, **MANY_EXPERTS
    )


def test_a_verdict_is_that_of_this_process(
    inspectors: Inspectors, body: dict[str, Any], tmp_path: Path
) -> None:
    spec = spec_of(body)
    assert judged(inspectors, spec) == judge(spec, LIMITS, open_store)
    wrong = spec_of(
        body, model={"uri": str(tmp_path / "nothing")}, output={"uri_prefix": "/proc/x"}
    )
    far, near = judged(inspectors, wrong), judge(wrong, LIMITS, open_store)
    assert [issue.as_dict() for issue in far.issues] == [issue.as_dict() for issue in near.issues]
    assert [type(issue) for issue in far.issues] == [type(issue) for issue in near.issues]


def test_limits_of_the_tenant_are_kept(inspectors: Inspectors, body: dict[str, Any]) -> None:
    (issue,) = inspectors.judge(spec_of(body), TenantLimits(model_bytes=1000), open_store).issues
    assert isinstance(issue, OverLimit)
    assert issue.field == "model.uri"


def test_headers_that_the_config_does_not_explain_are_not_read(
    client: TestClient, body: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    """671 MiB and 26 s of processor time, once."""
    model = make_hostile_model(tmp_path / "empty", tiny_model, shards=4, header_bytes=15_900_000)
    body["model"]["uri"] = str(model)
    answer = client.post(f"{JOBS}/validate", json=body).json()
    (issue,) = answer["issues"]
    assert (issue["code"], issue["pointer"]) == ("invalid_checkpoint", "/model/uri")
    assert "more than a model of this config.json can need" in issue["detail"]


def test_a_helper_that_needs_too_much_memory(many_experts: Path, body: dict[str, Any]) -> None:
    with Inspectors(1, HelperLimits(room_bytes=32 << 20)) as pool:
        (issue,) = judged(pool, spec_of(body, model={"uri": str(many_experts)})).issues
        assert (issue.code, issue.field) == ("too_costly", "model.uri")
        assert not issue.retryable
        # Another one has taken its place.
        assert judged(pool, spec_of(body)).estimate is not None
    with Inspectors(1) as pool:  # with room, it is said what is wrong with the model
        (issue,) = judged(pool, spec_of(body, model={"uri": str(many_experts)})).issues
        assert issue.code == "invalid_checkpoint"


def test_a_helper_that_needs_too_much_time(many_experts: Path, body: dict[str, Any]) -> None:
    slow = spec_of(body, model={"uri": str(many_experts)})
    with Inspectors(1, HelperLimits(cpu_seconds=0)) as pool:
        (issue,) = [judged(pool, slow) for _ in range(4)][-1].issues
        assert (issue.code, issue.field) == ("too_costly", "model.uri")


def test_a_helper_that_hangs_is_replaced(body: dict[str, Any]) -> None:
    with Inspectors(1) as pool:
        judged(pool, spec_of(body))
        (helper,) = pool._idle
        helper._limits = HelperLimits(wall_seconds=0.5)

        def stopping(uri: str) -> Store:
            os.kill(helper._process.pid, signal.SIGSTOP)
            return open_store(uri)

        with pytest.raises(InspectionUnavailable):
            judged(pool, spec_of(body), stopping)
        assert helper._process.returncode == -signal.SIGKILL
        assert pool._idle == []
        assert judged(pool, spec_of(body)).estimate is not None


def test_one_that_was_killed_meanwhile_is_replaced(body: dict[str, Any]) -> None:
    with Inspectors(1) as pool:
        judged(pool, spec_of(body))
        (helper,) = pool._idle
        os.kill(helper._process.pid, signal.SIGKILL)
        helper._process.wait()
        assert judged(pool, spec_of(body)).estimate is not None


def test_a_helper_holds_no_secret(body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCPRUNE_S3_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    with Path("/dev/null").open() as file, Inspectors(1) as pool:
        os.set_inheritable(file.fileno(), True)
        judged(pool, spec_of(body))
        (helper,) = pool._idle
        process = Path(f"/proc/{helper._process.pid}")
        assert b"canary" not in (process / "environ").read_bytes()
        # Standard streams and the channel.
        assert len(list((process / "fd").iterdir())) == 4


def test_helpers_end_with_the_pool(body: dict[str, Any]) -> None:
    pool = Inspectors(2)
    pool.warm()
    pids = [helper._process.pid for helper in pool._idle]
    pool.close()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_helpers_are_not_started_beyond_their_number(body: dict[str, Any]) -> None:
    refused: list[InspectionUnavailable] = []
    with Inspectors(1, HelperLimits(total_seconds=30)) as pool:

        def opened(uri: str) -> Store:
            pool._limits = HelperLimits(total_seconds=0.05)
            if not refused:
                with pytest.raises(InspectionUnavailable) as caught:
                    judged(pool, spec_of(body))
                refused.append(caught.value)
            return open_store(uri)

        assert judged(pool, spec_of(body), opened).estimate is not None
    (error,) = refused
    assert error.retryable


def calls(body: dict[str, Any]) -> HelperCalls:
    return HelperCalls(spec_of(body), open_store)


def test_a_helper_gets_at_no_other_place(body: dict[str, Any], tmp_path: Path) -> None:
    ours = calls(body)
    for call in (
        {"call": "open", "uri": "/etc"},
        {"call": "open", "uri": str(tmp_path)},
        {"call": "stat", "store": 0, "key": "config.json"},
        {"call": "put", "store": 0, "key": "x"},
        {"call": "page", "listing": 3},
        {"call": "open"},
        {"call": "open", "uri": {}},
    ):
        with pytest.raises(ChannelBroken):
            ours.answer(call)
    reply, _ = ours.answer({"call": "open", "uri": body["model"]["uri"]})
    with pytest.raises(StrucPruneError):
        ours.answer({"call": "stat", "store": reply["store"], "key": "../../etc/passwd"})


def test_reads_are_bounded(body: dict[str, Any], tmp_path: Path) -> None:
    model = tmp_path / "big"
    model.mkdir()
    with (model / "config.json").open("wb") as file:
        file.truncate(MAX_READ_BYTES + 1)
    ours = calls({**body, "model": {"uri": str(model)}})
    ours.answer({"call": "open", "uri": str(model)})
    read = {"call": "read", "store": 0, "key": "config.json", "start": 0}
    for length in (None, MAX_READ_BYTES + 1):
        with pytest.raises(InvalidCheckpoint) as caught:
            ours.answer({**read, "length": length})
        assert caught.value.field == "model.uri"
    _, data = ours.answer({**read, "length": 10})
    assert data == bytes(10)
    for _ in range(9):
        ours.answer({**read, "length": MAX_READ_BYTES})
    with pytest.raises(InvalidCheckpoint):
        ours.answer({**read, "length": MAX_READ_BYTES})


def test_listings_come_in_pages(
    inspectors: Inspectors, body: dict[str, Any], tmp_path: Path
) -> None:
    model = tmp_path / "many"
    model.mkdir()
    for number in range(1500):
        (model / f"f{number}").touch()
    ours = calls({**body, "model": {"uri": str(model)}})
    ours.answer({"call": "open", "uri": str(model)})
    sizes = [len(ours.answer({"call": "list", "store": 0, "prefix": ""})[0]["found"])]
    while sizes[-1]:
        sizes.append(len(ours.answer({"call": "page", "listing": 0})[0]["found"]))
    assert sizes == [1000, 500, 0]
    # As a helper sees it.
    issues = judged(inspectors, spec_of(body, model={"uri": str(model)})).issues
    assert "no config.json" in str(issues[0])


def test_channels_believe_nothing() -> None:
    left, right = socket.socketpair()
    channel = Channel(left, max_payload_bytes=10)
    far = Channel(right, max_payload_bytes=10)
    far.send({"a": 1}, b"payload")
    header, payload = channel.receive(1)
    assert (header, bytes(payload)) == ({"a": 1}, b"payload")
    with pytest.raises(TooLate):
        channel.receive(0.01)
    for sent in (
        (MAX_HEADER_BYTES + 1).to_bytes(4, "big") + bytes(4),
        (2).to_bytes(4, "big") + (11).to_bytes(4, "big"),
        (2).to_bytes(4, "big") + bytes(4) + b"[]",
        (2).to_bytes(4, "big") + bytes(4) + b"{,",
    ):
        left, right = socket.socketpair()
        right.sendall(sent)
        with pytest.raises(ChannelBroken):
            Channel(left, max_payload_bytes=10).receive(1)
        right.close()
        left.close()
    far.close()
    with pytest.raises(ChannelBroken):
        channel.receive(1)
    channel.close()


def test_errors_are_what_they_were() -> None:
    for error in (
        InvalidCheckpoint("m", field="model.uri", remedy="r", layer=3),
        ObjectNotFound("gone"),
        OverLimit("large", mends=[Mend("calibration.samples", 4), Mend("pruning.exports", [])]),
    ):
        again = revived(error.as_dict())
        assert (type(again), again.as_dict()) == (type(error), error.as_dict())
    assert revived({"code": "of another release", "message": "m"}).message == "m"
    for wrong in (5, [5], [{"value": 1}], [{"field": 1, "value": 1}]):
        assert revived({"code": "over_limit", "message": "m", "mends": wrong}).mends == ()


def test_a_store_of_the_desk_is_the_one_asked_for(body: dict[str, Any]) -> None:
    opened: list[str] = []

    def open_noting(uri: str) -> Store:
        opened.append(uri)
        return LocalStore(Path(uri))

    ours = HelperCalls(spec_of(body), open_noting)
    text = Path(body["calibration"]["uri"])
    reply, _ = ours.answer({"call": "open", "uri": str(text.resolve().parent)})
    assert ours.field == "calibration.uri"
    reply, _ = ours.answer({"call": "stat", "store": reply["store"], "key": text.name})
    assert reply["size"] == text.stat().st_size
    assert opened == [str(text.resolve().parent)]


def judged_by(body: dict[str, Any]) -> dict[str, Any]:
    """An evaluation on the calibration text."""
    return {"uri": body["calibration"]["uri"], "sequences": 2, "sequence_length": 32}


TASKS = Path(__file__).parents[2] / "embedded/tasks"


@pytest.mark.parametrize("allowed", [False, True])
def test_tasks_use_a_hub_only_where_they_may(
    inspectors: Inspectors, body: dict[str, Any], allowed: bool
) -> None:
    files = {"tasks": ["everyday", "piqa"], "task_files": str(TASKS)}
    body["evaluation"] = {**judged_by(body), **files}
    spec = JobSpec.model_validate(body)
    verdict = inspectors.judge(spec, LIMITS, open_store, task_downloads=allowed)
    assert [issue.field for issue in verdict.issues] == ([] if allowed else ["evaluation.tasks"])


def test_a_service_downloads_no_data_of_tasks_by_default(
    client: TestClient, body: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And a task file is parsed by the helper, from its prefix."""
    body["evaluation"] = {**judged_by(body), "tasks": ["piqa"]}
    (issue,) = client.post(f"{JOBS}/validate", json=body).json()["issues"]
    assert issue["pointer"] == "/evaluation/tasks"
    assert "STRUCPRUNE_TASK_DOWNLOADS" in str(issue)
    files = tmp_path_factory.mktemp("tasks")
    (files / "piqa.yaml").write_text("task: piqa\ndoc_to_text: !function os.system\n")
    body["evaluation"]["task_files"] = str(files)
    (issue,) = client.post(f"{JOBS}/validate", json=body).json()["issues"]
    assert issue["pointer"] == "/evaluation/task_files"
    assert "names code" in str(issue)
