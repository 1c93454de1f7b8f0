"""Jobs over REST, through the real Valkey, S3 server, API, reconciler and worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from safetensors.numpy import load_file

from embedded.generate import generate
from embedded.stack import WORK_BUCKET, Stack
from strucprune_core.client import JobConflict, RequestInvalid, StrucPruneClient
from strucprune_core.client.calls import JOBS
from strucprune_core.export.loading import load_pretrained
from tests.core.models.generic.tiny import save_tiny
from tests.integration.conftest import MakeSpec, Spec
from tests.support.jobs import calibrated, published, until, weights
from tests.support.text import make_text

pytestmark = pytest.mark.services


def test_a_job_from_submission_to_a_checkpoint_that_generates_in_transformers(
    client: StrucPruneClient, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    spec = make_spec()
    job = client.wait(client.submit(spec).id)
    assert job.error is None
    assert job.state == "succeeded"
    assert job.attempt == 1
    assert job.progress is not None
    assert job.progress.fraction == 1.0

    report = client.report(job.id)
    assert job.summary is not None
    assert report["sparsity"]["reached"] == pytest.approx(0.3, abs=0.01)
    assert job.summary["parameters"]["after"] == report["after"]["parameters"]
    assert job.summary["perplexity"]["after"] == report["perplexity"]["after"]

    pruned = tmp_path / "pruned"
    client.download(job.id, pruned)
    assert "<html" in (pruned / "report.html").read_text(encoding="utf-8").lower()
    tensors = load_file(pruned / "model.safetensors")
    widths = [tensors[f"model.layers.{layer}.mlp.gate_proj.weight"].shape[0] for layer in range(4)]
    assert widths == [layer["width_after"] for layer in report["layers"]]
    assert sum(widths) == report["after"]["ffn_channels"]
    assert generate(pruned, "The miller").startswith("The miller")


def test_an_architecture_without_code_of_its_own(
    stack: Stack, client: StrucPruneClient, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """The API checks it without torch; a worker prunes it in transformers' modules."""
    model = save_tiny("olmo2", tmp_path / "model")
    s3 = stack.s3.client()
    for path in model.iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"olmo2/{path.name}")
    spec = make_spec()
    spec["model"]["uri"] = f"s3://{WORK_BUCKET}/olmo2"
    spec["evaluation"]["max_perplexity_ratio"] = 1000.0
    found = client.validate(spec)
    assert found.estimate is not None
    job = client.wait(client.submit(spec).id)
    assert job.error is None
    client.download(job.id, tmp_path / "out")
    loaded = load_pretrained(str(tmp_path / "out"))
    size = sum(each.numel() for each in loaded.parameters())
    assert size < found.estimate["parameters_before"]


def test_several_sizes(
    client: StrucPruneClient, make_spec: MakeSpec, stack: Stack, tmp_path: Path
) -> None:
    spec = make_spec()
    spec["pruning"] = {"sizes": [0.2, 0.4]}
    found = client.validate(spec)
    assert found.estimate is not None
    assert {*found.estimate["sizes"]} == {"0.2", "0.4"}
    job = client.wait(client.submit(spec).id)
    assert job.error is None
    assert job.summary is not None
    report = client.report(job.id)
    names = [each["name"] for each in report["sizes"]]
    assert names == [each["folder"] for each in job.summary["sizes"]] == ["0.2", "0.4"]
    paths = client.download(job.id, tmp_path / "out")
    assert {str(path.relative_to(tmp_path / "out")) for path in paths} == set(
        published(stack, spec)
    )
    for each in report["sizes"]:
        folder = tmp_path / "out" / each["folder"]
        size = sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
        assert size == each["after"]["parameters"]
        alone = httpx.get(
            f"{stack.api_url}{JOBS}/{job.id}/report",
            params={"size": each["name"]},
            headers={"Authorization": f"Bearer {stack.api_key}"},
        )
        assert alone.json()["perplexity"]["after"] == each["perplexity"]
        assert alone.content == (folder / "report.json").read_bytes()
    missing = httpx.get(
        f"{stack.api_url}{JOBS}/{job.id}/report",
        params={"size": "../0.2"},
        headers={"Authorization": f"Bearer {stack.api_key}"},
    )
    assert missing.status_code == 404
    client.delete(job.id, outputs=True)
    assert published(stack, spec) == []


def test_a_target(client: StrucPruneClient, make_spec: MakeSpec) -> None:
    """What it comes to is known before submission, and is what the job does."""
    spec = make_spec()
    found = client.validate(spec)
    assert found.estimate is not None
    most = found.estimate["parameters_after"]
    spec["pruning"] = {"target": {"parameters": most}}
    again = client.validate(spec)
    assert again.estimate is not None
    assert again.estimate["parameters_after"] <= most
    job = client.wait(client.submit(spec).id)
    assert job.error is None
    report = client.report(job.id)
    assert report["target"] == {
        "kind": "parameters",
        "most": most,
        "reached": report["after"]["parameters"],
    }
    assert report["sparsity"]["requested"] == again.estimate["sparsity_requested"]


def test_keys_of_any_characters(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    tiny_model: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    odd = "in/50% of #3? a+b=c&d é数"
    s3 = stack.s3.client()
    for path in tiny_model.iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"{odd}/{path.name}")
    s3.upload_file(str(text_file), WORK_BUCKET, f"{odd}/text #1%2F?.txt")
    spec = make_spec()
    spec["model"]["uri"] = f"s3://{WORK_BUCKET}/{odd}"
    spec["output"]["uri_prefix"] += "/to 50% of #3? a+b=c&d é数"
    for part in ("calibration", "evaluation"):
        spec[part]["uri"] = f"s3://{WORK_BUCKET}/{odd}/text #1%2F?.txt"
    job = client.wait(client.submit(spec).id)
    assert job.error is None
    paths = client.download(job.id, tmp_path)
    assert {path.name for path in paths} == set(published(stack, spec))
    assert client.report(job.id)["model"]["uri"] == spec["model"]["uri"]
    client.delete(job.id, outputs=True)
    assert published(stack, spec) == []


def test_a_uniform_layout_needs_no_code_of_ours(
    client: StrucPruneClient, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec()
    spec["pruning"] = {"sparsity": 0.25, "layout": "uniform"}
    job = client.wait(client.submit(spec).id)
    assert job.state == "succeeded"
    client.download(job.id, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["intermediate_size"]) == ("llama", 144)
    assert not list(tmp_path.glob("*.py"))


def test_a_repeated_submission_is_the_same_job(
    client: StrucPruneClient, make_spec: MakeSpec
) -> None:
    spec = make_spec()
    first = client.submit(spec, idempotency_key="once")
    again = client.submit(spec, idempotency_key="once")
    assert again.id == first.id
    with pytest.raises(RequestInvalid):
        client.submit(make_spec(), idempotency_key="once")
    client.cancel(first.id)
    assert client.wait(first.id).state == "cancelled"


def test_cancel_a_running_job(stack: Stack, client: StrucPruneClient, make_spec: MakeSpec) -> None:
    spec = make_spec(samples=128, length=64)
    job_id = client.submit(spec).id
    until(client, job_id, lambda job: job.state == "running" and job.progress is not None)
    client.cancel(job_id)
    job = client.wait(job_id)
    assert job.error is None
    assert job.state == "cancelled"
    assert published(stack, spec) == []
    with pytest.raises(JobConflict):
        client.report(job_id)


def test_pause_and_resume_give_the_same_checkpoint(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    undisturbed: Callable[[Spec], bytes],
) -> None:
    paused = make_spec(samples=192, length=64)
    job_id = client.submit(paused).id
    until(client, job_id, calibrated())
    client.pause(job_id)
    until(client, job_id, lambda job: job.state == "paused")
    client.resume(job_id)
    job = client.wait(job_id)
    assert job.state == "succeeded"
    assert job.attempt == 1
    assert weights(stack, paused) == undisturbed(paused)


def test_a_cancelled_job_is_retried_to_the_same_checkpoint(
    stack: Stack,
    client: StrucPruneClient,
    make_spec: MakeSpec,
    undisturbed: Callable[[Spec], bytes],
) -> None:
    retried = make_spec(samples=192, length=64)
    job_id = client.submit(retried).id
    # The embedding and the first layer are done.
    until(client, job_id, calibrated(2))
    client.cancel(job_id)
    assert client.wait(job_id).state == "cancelled"
    assert client.retry(job_id).run == 2
    job = client.wait(job_id)
    assert (job.state, job.run, job.attempt) == ("succeeded", 2, 1)
    assert weights(stack, retried) == undisturbed(retried)
    done = [
        (line.run, line.message.split(" finished")[0])
        for line in client.logs(job_id)
        if " finished in " in line.message
    ]
    # What the first run had finished, the second did not do again.
    assert {(1, "capture.0"), (2, "report")} <= set(done)
    assert len({unit for _, unit in done}) == len(done)
    with stack.http() as http:
        assert 'strucprune_unit_seconds_count{kind="capture"}' in http.get("/metrics").text


def test_a_retry_uses_a_text_that_was_replaced(
    stack: Stack, client: StrucPruneClient, make_spec: MakeSpec
) -> None:
    s3, key = stack.s3.client(), f"texts/{uuid4().hex}.txt"
    retried, fresh = (make_spec(samples=192, length=64) for _ in range(2))
    for spec in (retried, fresh):
        spec["calibration"]["uri"] = f"s3://{WORK_BUCKET}/{key}"
    s3.put_object(Bucket=WORK_BUCKET, Key=key, Body=make_text(seed=1).encode())
    job_id = client.submit(retried).id
    until(client, job_id, calibrated(2))
    client.cancel(job_id)
    assert client.wait(job_id).state == "cancelled"
    s3.put_object(Bucket=WORK_BUCKET, Key=key, Body=make_text(seed=2).encode())
    client.retry(job_id)
    job = client.wait(job_id)
    assert (job.state, job.run) == ("succeeded", 2), job.error
    assert client.wait(client.submit(fresh).id).state == "succeeded"
    assert weights(stack, fresh) == weights(stack, retried)
    done = [
        (line.run, line.message.split(" finished")[0])
        for line in client.logs(job_id)
        if " finished in " in line.message
    ]
    assert {(1, "capture.0"), (2, "capture.0")} <= set(done)
    assert (2, "evaluate.dense") not in done  # which reads another text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pruning": {"sparsity": 1.5}}, "/pruning/sparsity"),
        ({"pruning": {"sparsity": 0.3, "solver": "magic"}}, "/pruning/solver"),
        ({"model": {"uri": f"s3://{WORK_BUCKET}/nowhere"}}, "/model/uri"),
        ({"model": {"uri": "s3://no-such-bucket/model"}}, "/model/uri"),
        ({"model": {"uri": "/etc"}}, "/model/uri"),
        ({"model": {"uri": f"s3://{WORK_BUCKET}/../etc"}}, "/model/uri"),
        ({"calibration": {"uri": f"s3://{WORK_BUCKET}/nothing.txt"}}, "/calibration/uri"),
        ({"output": {"uri_prefix": f"s3://{WORK_BUCKET}/input"}}, "/output/uri_prefix"),
        ({"surprise": 1}, "/surprise"),
    ],
)
def test_a_wrong_job_is_refused_at_submission(
    stack: Stack, make_spec: MakeSpec, change: dict[str, Any], field: str
) -> None:
    with stack.http() as http:
        response = http.post(JOBS, json={**make_spec(), **change})
    assert response.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert response.headers["Content-Type"] == "application/problem+json"
    pointers = [error["pointer"] for error in response.json()["errors"]]
    assert any(pointer.startswith(field) for pointer in pointers), response.text


def test_without_a_key_there_is_nothing(stack: Stack, make_spec: MakeSpec) -> None:
    response = httpx.post(f"{stack.api_url}{JOBS}", json=make_spec())
    assert response.status_code == httpx.codes.UNAUTHORIZED
