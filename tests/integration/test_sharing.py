"""Two workers on one job, one of them killed in the middle of it: the bytes are one worker's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from embedded.processes import ManagedProcess, wait_until
from embedded.stack import WORK_BUCKET, Stack
from strucprune_core.client import StrucPruneClient
from tests.integration.conftest import MakeSpec
from tests.support.jobs import output_key, solve_of, until

pytestmark = pytest.mark.services


@pytest.fixture
def stopped_solve(stack: Stack) -> Iterator[list[int]]:
    """Put a solve here that is stopped: it goes on at the end, whatever happens."""
    solves: list[int] = []
    yield solves
    for solve in solves:
        with contextlib.suppress(ProcessLookupError):
            os.kill(solve, signal.SIGCONT)


@pytest.fixture
def second(stack: Stack) -> Iterator[list[ManagedProcess]]:
    """Put a second worker here: it is gone after the test."""
    workers: list[ManagedProcess] = []
    yield workers
    for worker in workers:
        worker.kill()
        stack.workers.remove(worker)


def test_a_job_is_served_by_two_workers_of_which_one_is_killed(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    stopped_solve: list[int],
    second: list[ManagedProcess],
) -> None:
    alone = make_spec(samples=192, length=64)
    shared = make_spec(samples=192, length=64, max_workers=2)
    job_id = client.submit(shared).id
    until(client, job_id, lambda job: wants_help(stack, job.id))
    leader = solve_of(stack)
    stopped_solve.append(leader)
    os.kill(leader, signal.SIGSTOP)  # Its supervisor goes on: the job stays its own.
    while not wants_help(stack, job_id):  # The leader has just taken the last unit.
        os.kill(leader, signal.SIGCONT)
        until(client, job_id, lambda job: wants_help(stack, job.id))
        os.kill(leader, signal.SIGSTOP)

    # The second worker takes a whole job first, although it is called for help already.
    twin_id = client.submit(alone).id
    helper = stack.start_worker()
    second.append(helper)
    assert client.wait(twin_id).state == "succeeded"
    before = helper.log_tail(1000).count(" finished in ")

    wait_until(lambda: client.get(job_id).workers == 2, "it helps", timeout_seconds=60)
    wait_until(
        lambda: helper.log_tail(1000).count(" finished in ") > before,
        "it has done a unit",
        timeout_seconds=60,
    )
    os.kill(leader, signal.SIGCONT)
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as ledger:
        units = f"strucprune:job:{job_id}:units"

        def at_it_or_over() -> bool:
            holders: Any = ledger.hkeys(units)
            return holders not in ([], ["leader"]) or client.get(job_id).state != "running"

        wait_until(at_it_or_over, "it is in the middle of another", timeout_seconds=60)
    os.kill(helper.pid, signal.SIGKILL)

    job = client.wait(job_id)
    assert (job.state, job.attempt, job.workers) == ("succeeded", 1, 0)
    assert digests(stack, shared) == digests(stack, alone)
    said = [event.data["workers"] for event in client.events(job_id) if event.type == "workers"]
    assert said[0] == 2


def wants_help(stack: Stack, job_id: str) -> bool:
    """Whether there are units of the job that could be done and that nobody does."""
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as ledger:
        return ledger.zscore("strucprune:help", job_id) is not None


def digests(stack: Stack, spec: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every published file that tells no times."""
    key = f"{output_key(spec)}/strucprune.json"
    found = stack.s3.client().get_object(Bucket=WORK_BUCKET, Key=key)
    files = json.load(found["Body"])["files"]
    return {
        entry["name"]: entry["sha256"] for entry in files if not entry["name"].startswith("report.")
    }
