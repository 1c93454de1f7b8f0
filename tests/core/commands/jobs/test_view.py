"""A job as people see it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strucprune_core.client.models import Job
from strucprune_core.commands.jobs.view import print_job

ID = "job_" + "0123456789abcdef" * 2
JOB: dict[str, Any] = {
    "id": ID,
    "state": "succeeded",
    "created_at": "2026-01-02T03:04:05Z",
    "attempt": 1,
    "spec": {"model": {"uri": "s3://b/m"}, "output": {"uri_prefix": "s3://b/out"}},
}


def shown(capsys: pytest.CaptureFixture[str], **more: Any) -> tuple[list[str], list[str]]:
    print_job(Job.model_validate({**JOB, **more}), as_json=False)
    found = capsys.readouterr()
    return [" ".join(line.split()) for line in found.out.splitlines()], found.err.splitlines()


def test_a_finished_job(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {
        "parameters": {"before": 134_515_008, "after": 118_600_000},
        "bytes": {"before": 269_030_016, "after": 237_200_000},
        "perplexity": {"before": 20.0, "after": 25.0, "ratio": 1.25},
        "seconds": 200.0,
        "warnings": ["One [bold]thing[/]."],
    }
    out, err = shown(capsys, summary=summary, labels={"team": "a"})
    assert out == [
        f"id {ID}",
        "state succeeded",
        "model s3://b/m",
        "output s3://b/out",
        "created 2026-01-02 03:04:05 UTC",
        "labels team=a",
        "parameters 134.5 M -> 118.6 M (-11.8%)",
        "checkpoint 269 MB -> 237 MB (-11.8%)",
        "perplexity 20.00 -> 25.00 (+25.0%)",
        "time 3 min 20 s",
    ]
    assert err == ["warning One [bold]thing[/]."]


def test_a_job_of_several_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    size = {"name": "0.2", "parameters": 1000, "bytes": 2000, "perplexity": None}
    summary = {
        "parameters": {"before": 2000},
        "bytes": {"before": 4000},
        "perplexity": None,
        "sizes": [
            {**size, "perplexity_ratio": None, "rejected": None},
            {**size, "name": "0.5", "perplexity_ratio": 12.0, "rejected": "It collapsed."},
        ],
    }
    out, _ = shown(capsys, summary=summary)
    assert out[-5:] == [
        "dense parameters 2,000",
        "dense checkpoint 4 kB",
        "size parameters checkpoint perplexity ratio",
        "0.2 1,000 2 kB - -",
        "0.5 1,000 2 kB - 12.00 not published",
    ]


def test_a_running_job(capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"phase": "solving", "layers_done": 3, "layers_total": 30, "fraction": 0.4}
    out, _ = shown(
        capsys, state="running", run=2, attempt=3, progress={**progress, "eta_seconds": 200.0}
    )
    assert out[-3:] == ["attempt 3 of run 2", "progress 40%, solving 3/30", "left about 3 min 20 s"]


def test_a_failed_job(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "numerical_failure", "message": "It failed", "layer": 3, "remedy": "Do this."}
    _, err = shown(capsys, state="failed", error=error)
    assert err == ["error (numerical_failure): It failed (layer 3).", "  Do this."]


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"parameters": {"before": 134_515_008, "after": 118_600_001}}
    print_job(Job.model_validate({**JOB, "summary": summary}), as_json=True)
    assert json.loads(capsys.readouterr().out)["summary"] == summary


@pytest.mark.parametrize(
    ("queue", "told"),
    [
        ({"position": 3, "waits_for": "turn", "workers": 2}, "number 3, 2 workers"),
        (
            {"position": 1, "waits_for": "limit", "workers": 1},
            "number 1, waits for the limit of running jobs, 1 worker",
        ),
        (
            {"position": None, "waits_for": "rest", "workers": 0},
            "rests before it is tried again, 0 workers",
        ),
    ],
)
def test_a_waiting_job(
    queue: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = shown(capsys, state="queued", queue=queue)
    assert out[-1] == f"queue {told}"
