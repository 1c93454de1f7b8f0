"""A DAG of tasks as in Airflow, in plain Python: validate, prune, check, fetch.

    STRUCPRUNE_URL=... STRUCPRUNE_API_KEY=... python dag.py job.json RUN_ID OUTPUT

Every task may be run again: the run id is the idempotency key, so that a task that is retried finds
the job that it has already submitted, and a download goes on where it ended. In Airflow, put
`@task` over the functions and `@dag` over `dag`; what they hand on is JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from strucprune_core.client import StrucPruneClient

MAX_PERPLEXITY_RATIO = 10.0


def validate(spec: dict[str, Any]) -> dict[str, Any]:
    """Fail before anything is queued."""
    with StrucPruneClient() as client:
        found = client.validate(spec)
    if not found.valid:
        raise ValueError("; ".join(f"{issue.pointer}: {issue.detail}" for issue in found.issues))
    return spec


def prune(spec: dict[str, Any], run_id: str) -> str:
    """Submit the job, or find it again, and wait for its end; its id."""
    with StrucPruneClient(retry_seconds=600) as client:
        job = client.submit(spec, idempotency_key=f"dag-{run_id}")
        job = client.wait(job.id, on_change=lambda job: print(job.id, job.state, job.progress))
    if job.state != "succeeded":
        raise RuntimeError(f"{job.id} {job.state}: {job.error}")
    return job.id


def check(job_id: str) -> str:
    """Let nothing through that lost too much."""
    with StrucPruneClient() as client:
        perplexity = client.report(job_id)["perplexity"]
    if perplexity and perplexity["ratio"] > MAX_PERPLEXITY_RATIO:
        raise RuntimeError(f"perplexity rose by {perplexity['ratio']:.2f}")
    return job_id


def fetch(job_id: str, output: str) -> list[str]:
    """Bring the checkpoint here."""
    with StrucPruneClient(retry_seconds=600) as client:
        return [str(path) for path in client.download(job_id, output)]


def dag(spec: dict[str, Any], run_id: str, output: str) -> list[str]:
    """The whole: each task takes what the one before hands on."""
    return fetch(check(prune(validate(spec), run_id)), output)


if __name__ == "__main__":
    job_file, run, target = sys.argv[1:]
    for path in dag(json.loads(Path(job_file).read_text(encoding="utf-8")), run, target):
        print(path)
