"""Jobs of the embedded stack: waiting for a point in their life, and what they have published."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedded.stack import WORK_BUCKET, Stack
from strucprune_core.client import Job, StrucPruneClient
from strucprune_core.run.progress import Phase
from tests.support.processes import descendants

_POLL_SECONDS = 0.05


def until(client: StrucPruneClient, job_id: str, reached: Callable[[Job], bool]) -> Job:
    """The job once `reached`, which must happen before it ends."""
    while True:
        job = client.get(job_id)
        if reached(job):
            return job
        assert not job.ended, f"{job.state}: {job.error}"
        time.sleep(_POLL_SECONDS)


def solve_of(stack: Stack) -> int:
    """Process id of the solve that the stack's worker runs."""
    for pid in descendants(stack.workers[-1].pid):
        if b"worker.solve" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("the worker runs no solve")


def calibrated(layers: int = 0) -> Callable[[Job], bool]:
    """Whether a job has calibrated so many layers, and has most of the rest before it.

    Curves are computed between layers, so that a job may never be seen after a certain one.
    """

    def reached(job: Job) -> bool:
        progress = job.progress
        if progress is None:
            return False
        if progress.phase == Phase.CALIBRATING:
            return progress.layers_done >= layers
        return progress.phase == Phase.ALLOCATING

    return reached


def output_key(spec: dict[str, Any]) -> str:
    """Where in the bucket a job publishes."""
    uri: str = spec["output"]["uri_prefix"]
    return uri.removeprefix(f"s3://{WORK_BUCKET}/")


def published(stack: Stack, spec: dict[str, Any]) -> list[str]:
    """Names of the files below a job's output prefix."""
    return objects_below(stack, output_key(spec))


def objects_below(stack: Stack, key: str) -> list[str]:
    """Names of the objects of the work bucket below a key."""
    listing = stack.s3.client().list_objects_v2(Bucket=WORK_BUCKET, Prefix=f"{key}/")
    return [entry["Key"].removeprefix(f"{key}/") for entry in listing.get("Contents", [])]


def weights(stack: Stack, spec: dict[str, Any]) -> bytes:
    """The weights that a job has published."""
    key = f"{output_key(spec)}/model.safetensors"
    data: bytes = stack.s3.client().get_object(Bucket=WORK_BUCKET, Key=key)["Body"].read()
    return data
