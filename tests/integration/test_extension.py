"""A finished job is extended in the service: the second worker run measures nothing again."""

from __future__ import annotations

import re

import pytest

from embedded.stack import STATE_BUCKET, WORK_BUCKET, Stack
from strucprune_core.client import RequestInvalid, StrucPruneClient
from tests.integration.conftest import MakeSpec, Spec
from tests.support.jobs import output_key, published

pytestmark = pytest.mark.services

_DONE = re.compile(r"(\S+) finished in ")


def units_of(client: StrucPruneClient, job_id: str) -> set[str]:
    """The units that a job's processes have done."""
    found = (_DONE.search(line.message) for line in client.logs(job_id))
    return {match[1] for match in found if match}


def of_sizes(spec: Spec, *sizes: float) -> Spec:
    return {**spec, "pruning": {"sizes": [*sizes]}}


def weights_of(stack: Stack, spec: Spec, size: str) -> bytes:
    key = f"{output_key(spec)}/{size}/model.safetensors"
    data: bytes = stack.s3.client().get_object(Bucket=WORK_BUCKET, Key=key)["Body"].read()
    return data


def files_of_workspace(stack: Stack, job_id: str) -> list[str]:
    prefix = f"state/workspaces/{job_id}/"
    listing = stack.s3.client().list_objects_v2(Bucket=STATE_BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def test_further_sizes_share_what_was_measured(
    stack: Stack, client: StrucPruneClient, make_spec: MakeSpec
) -> None:
    spec, other, whole = (make_spec() for _ in range(3))
    first = client.submit(of_sizes(spec, 0.3))
    assert client.wait(first.id).state == "succeeded"
    measured = units_of(client, first.id)
    assert {"capture.0", "curve.0", "solve.0@0.3"} <= measured

    second = client.extend(first.id, [0.3, 0.5], other["output"]["uri_prefix"])
    assert (second.extends, client.wait(second.id).state) == (first.id, "succeeded")
    done = units_of(client, second.id)
    assert not done & measured
    assert {unit for unit in done if not unit.endswith("@0.5")} == {"sizes@0.3+0.5"}
    assert [each["name"] for each in client.report(second.id)["sizes"]] == ["0.3", "0.5"]
    assert [each["name"] for each in client.report(first.id)["sizes"]] == ["0.3"]
    assert weights_of(stack, other, "0.3") == weights_of(stack, spec, "0.3")

    # The result is that of a job which did all by itself.
    alone = client.submit(of_sizes(whole, 0.5))
    assert client.wait(alone.id).state == "succeeded"
    assert weights_of(stack, other, "0.5") == weights_of(stack, whole, "0.5")

    # Each is deleted by itself, and the workspace goes with the last.
    client.delete(first.id, outputs=True)
    assert published(stack, spec) == []
    assert "0.3/model.safetensors" in published(stack, other)
    assert files_of_workspace(stack, first.id)
    third = client.extend(second.id, [0.4], f"{other['output']['uri_prefix']}-third")
    assert client.wait(third.id).state == "succeeded"
    assert all(unit.endswith("@0.4") for unit in units_of(client, third.id))
    for job_id in (second.id, third.id):
        client.delete(job_id)
    assert files_of_workspace(stack, first.id) == []
    with pytest.raises(RequestInvalid, match="no such job"):
        client.submit(of_sizes(make_spec(), 0.6), extends=first.id)
