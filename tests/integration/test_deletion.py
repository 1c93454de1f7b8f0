"""A job that is over is removed, with what it has published, from every place that knew of it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from embedded.stack import STATE_BUCKET, WORK_BUCKET, Stack
from strucprune_core.client import JobConflict, JobNotFound, RequestInvalid, StrucPruneClient
from tests.integration.conftest import MakeSpec
from tests.support.jobs import output_key, published

pytestmark = pytest.mark.services


def state_of(stack: Stack, job_id: str) -> list[str]:
    """Names of what the service itself keeps of a job."""
    listing = stack.s3.client().list_objects_v2(Bucket=STATE_BUCKET)
    return [
        entry["Key"].rpartition("/")[2] for entry in listing["Contents"] if job_id in entry["Key"]
    ]


def test_a_job_is_removed_with_its_outputs(
    stack: Stack, client: StrucPruneClient, make_spec: MakeSpec
) -> None:
    spec, key = make_spec(), uuid4().hex
    job_id = client.submit(spec, idempotency_key=key).id
    with pytest.raises(JobConflict):
        client.delete(job_id, outputs=True)
    assert client.wait(job_id).state == "succeeded"
    files = {file.name for file in client.artifacts(job_id)}
    assert files <= set(published(stack, spec))
    kept = f"{output_key(spec)}/notes.txt"
    stack.s3.client().put_object(Bucket=WORK_BUCKET, Key=kept, Body=b"the user's own")

    client.delete(job_id, outputs=True)
    for asked in (client.get, client.report, client.artifacts, client.retry, client.delete):
        with pytest.raises(JobNotFound):
            asked(job_id)
    assert job_id not in {job.id for job in client.list()}
    assert published(stack, spec) == ["notes.txt"]
    assert state_of(stack, job_id) == ["sequel-1.json"]
    stack.s3.client().delete_object(Bucket=WORK_BUCKET, Key=kept)
    # A request that was underway for long does not run it again.
    with pytest.raises(RequestInvalid, match="deleted"):
        client.submit(spec, idempotency_key=key)
    assert state_of(stack, job_id) == ["sequel-1.json"]
