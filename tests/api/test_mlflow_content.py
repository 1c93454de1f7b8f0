"""What MLflow is told about a job, whatever the job and its report hold."""

from __future__ import annotations

import json
import math
import posixpath
import re
from pathlib import Path
from typing import Any

import pytest

from api.mlflow.content import JOB_ID, RUN, SIZE, RunContent, contents_of
from api.mlflow.figures import MAX_PARSED_BYTES, Figures, read_figures
from strucprune_core.report.sizes import AnyReport
from tests.support.ended_jobs import ERROR, entry_of, failed, report_of_one, succeeded
from tests.support.reports import made_sizes


def contents(report: AnyReport, run: int = 1, **spec: Any) -> list[RunContent]:
    figures = read_figures(report.model_dump_json().encode())
    assert figures is not None
    entry = entry_of(Path("/data/out"), **spec)
    return contents_of("job_1", entry, succeeded(report, run), figures, entry.created_at)


def test_one_size() -> None:
    report = report_of_one()
    (job,) = contents(report)
    assert job.params["pruning.sparsity"] == "0.3"
    assert job.params["model.uri"] == "s3://models/smollm2"
    assert "pruning.target" not in job.params
    assert report.perplexity is not None
    expected = {
        "parameters_before": report.before.parameters,
        "parameters_after": report.after.parameters,
        "bytes_after": report.after.bytes,
        "perplexity_before": report.perplexity.before,
        "perplexity_after": report.perplexity.after,
        "perplexity_ratio": report.perplexity.ratio,
        "host_peak_bytes": report.memory.host_peak_bytes.measured,
        "speed/decode_gain": 1.5,
        "speed/prefill_gain": 1.25,
        "task/piqa/acc/dense": 0.66,
        "task/piqa/acc/pruned_stderr": 0.047,
        "task_retention": 0.8,
        f"phase_seconds/{report.phases[0].name}": report.phases[0].seconds,
    }
    assert {name: job.metrics.get(name) for name in expected} == expected
    assert job.tags == {
        "mlflow.runName": "smollm2",
        "mlflow.user": "acme",
        "mlflow.source.name": "strucprune",
        JOB_ID: "job_1",
        RUN: "1",
        SIZE: "",
        "strucprune.state": "succeeded",
        "strucprune.tenant": "acme",
        "strucprune.model_uri": "s3://models/smollm2",
        "strucprune.output_uri": "/data/out",
        "strucprune.label.team": "nlp",
    }
    assert job.documents == ("report.json", "report.html", "README.md")
    assert not job.failed


def test_several_sizes() -> None:
    report = made_sizes()
    job, *sizes = contents(report, pruning={"sizes": [0.2, 0.3, 0.5]})
    assert job.params["pruning.sizes"] == "[0.2, 0.3, 0.5]"
    assert "parameters_after" not in job.metrics
    assert job.metrics["perplexity_before"] == 23.5
    assert [size.tags[SIZE] for size in sizes] == ["0.2", "0.3", "0.5"]
    assert [size.params["pruning.sparsity"] for size in sizes] == ["0.2", "0.3", "0.5"]
    assert [size.failed for size in sizes] == [False, False, True]
    small = sizes[1]
    assert small.tags["mlflow.runName"] == "smollm2 0.3"
    assert small.tags["strucprune.output_uri"] == "/data/out/0.3"
    assert small.tags["strucprune.best_of_its_size"] == "true"
    assert small.metrics["perplexity_after"] == 23.5 * 1.3
    assert small.metrics["task/piqa/acc/pruned"] == 0.66
    assert small.metrics["bytes_before"] == report.before.bytes
    assert small.documents[0] == "0.3/report.json"
    assert sizes[2].tags["strucprune.rejected"] == "perplexity went too far"
    assert "strucprune.output_uri" not in sizes[2].tags
    assert sizes[2].documents == ()


def test_a_failure_and_a_retry() -> None:
    entry = entry_of(Path("/data/out"), name="Nightly")
    (job,) = contents_of("job_1", entry, failed(run=2), Figures(), 0.0)
    assert job.failed
    assert job.metrics == {}
    assert job.documents == ()
    assert {job.tags[f"strucprune.error.{part}"] for part in ERROR} == {*ERROR.values()}
    assert "strucprune.output_uri" not in job.tags
    assert job.tags["mlflow.runName"] == "Nightly, run 2"


HOSTILE = (
    "../../etc/passwd",
    "/",
    "..",
    "",
    "a b\n<x>\x00",
    "ü" * 10_000,
    "'; drop",
    "mlflow.user",
)


def test_names_of_others_are_harmless() -> None:
    labels = {name[:63]: name[:255] for name in HOSTILE if name}
    score = {"metrics": [{"name": name, "value": 1.0} for name in HOSTILE]}
    tasks = [{**score, "task": name} for name in HOSTILE]
    report = {
        "phases": [{"name": name, "seconds": 1.0} for name in HOSTILE],
        "tasks": {"dense": tasks},
    }
    figures = read_figures(json.dumps(report).encode())
    assert figures is not None
    entry = entry_of(Path("/data/out"), labels=labels)
    (job,) = contents_of("job_1", entry, succeeded(report_of_one()), figures, 0.0)
    for name in (*job.metrics, *job.tags, *job.params):
        assert re.fullmatch(r"[A-Za-z0-9_./-]{1,250}", name)
        assert posixpath.normpath(name) == name
        assert not name.startswith(("/", "."))
    assert job.tags["mlflow.user"] == "acme"
    assert all(len(text) <= 500 for text in (*job.tags.values(), *job.params.values()))


def test_numbers_that_are_none() -> None:
    report = b"""{"phases": [{"name": "a", "seconds": NaN}, {"name": "b", "seconds": Infinity},
        {"name": "c", "seconds": 1e999}, {"name": "d", "seconds": 2}], "tasks": null, "new": []}"""
    figures = read_figures(report)
    assert figures is not None
    outcome = succeeded(report_of_one()).model_copy(
        update={
            "summary": {
                "parameters": {"before": 10**400, "after": True},
                "bytes": "many",
                "perplexity": {"before": math.nan, "after": math.inf, "ratio": "x"},
            }
        }
    )
    (job,) = contents_of("job_1", entry_of(Path("/data/out")), outcome, figures, 0.0)
    assert job.metrics == {"phase_seconds/d": 2.0}


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"\xff", b"[" * 100_000, b'{"phases": 1}', b" " * (MAX_PARSED_BYTES + 1)],
    ids=["empty", "a list", "no text", "deep", "another", "large"],
)
def test_what_is_no_report(data: bytes) -> None:
    assert read_figures(data) is None


def test_a_report_without_end_is_cut() -> None:
    report = {"phases": [{"name": str(number), "seconds": 1.0} for number in range(1000)]}
    figures = read_figures(json.dumps(report).encode())
    assert figures is not None
    entry = entry_of(
        Path("/data/out"),
        pruning={"sparsity": 0.3, "max_sparsity_by_layer": dict.fromkeys(range(1000), 0.5)},
    )
    (job,) = contents_of("job_1", entry, succeeded(report_of_one()), figures, 0.0)
    assert len(job.metrics) == 500
    assert len(job.params) == 300
