"""Single faults in the middle of a job, of which more is asked than that it ends well.

That it does, after these and all others, is what tests/chaos shows.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embedded.processes import wait_until
from embedded.stack import Stack
from strucprune_core.client import StrucPruneClient
from tests.integration.conftest import MakeSpec, Spec
from tests.support.jobs import calibrated, solve_of, until, weights

pytestmark = pytest.mark.services


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_killed_worker_is_replaced(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    undisturbed: Callable[[Spec], bytes],
) -> None:
    spec = make_spec(samples=192, length=64)
    job_id = client.submit(spec).id
    until(client, job_id, calibrated())
    solve, worker = solve_of(stack), stack.workers[-1]
    # Only Celery's main process: its child and the solve must notice by themselves.
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not alive(solve), "the solve is dead", timeout_seconds=10)
    worker.kill()
    stack.start_worker()
    job = client.wait(job_id)
    assert job.state == "succeeded"
    assert job.attempt == 2
    assert weights(stack, spec) == undisturbed(spec)


def test_a_drained_worker_gives_its_job_back(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    undisturbed: Callable[[Spec], bytes],
) -> None:
    spec = make_spec(samples=192, length=64)
    job_id = client.submit(spec).id
    until(client, job_id, calibrated())
    worker = stack.workers[-1]
    began = time.monotonic()
    worker.stop(30)
    assert time.monotonic() - began < 25
    job = client.get(job_id)
    stack.start_worker()  # Before anything can fail: the tests that follow need one.
    assert (job.state, job.attempt) == ("queued", 0)
    job = client.wait(job_id)
    assert (job.state, job.attempt) == ("succeeded", 1)
    assert weights(stack, spec) == undisturbed(spec)


def test_a_job_outlives_its_storage(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    undisturbed: Callable[[Spec], bytes],
) -> None:
    spec = make_spec(samples=192, length=64)
    job_id = client.submit(spec).id
    until(client, job_id, calibrated())
    stack.s3.kill()
    try:
        with stack.http() as http:
            answer = http.post("/v1/pruning-jobs", json=make_spec())
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        # Long enough for an attempt to give up, and not for all of them.
        wait_until(
            lambda: client.get(job_id).error is not None,
            "an attempt has failed",
            timeout_seconds=60,
        )
    finally:
        stack.s3.start()
    job = client.wait(job_id)
    assert (job.state, job.error) == ("succeeded", None)
    assert job.attempt in (2, 3)
    assert weights(stack, spec) == undisturbed(spec)
