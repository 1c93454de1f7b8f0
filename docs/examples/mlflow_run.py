"""Log a finished job into MLflow: what was asked, what came of it, and the report as artifacts.

    pip install mlflow-skinny     # or all of mlflow
    STRUCPRUNE_URL=... STRUCPRUNE_API_KEY=... MLFLOW_TRACKING_URI=... python mlflow_run.py JOB

Prints the id of the MLflow run.
"""

from __future__ import annotations

import sys
from typing import Any

import mlflow

from strucprune_core.client import StrucPruneClient


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def log_job(client: StrucPruneClient, job_id: str) -> str:
    """Log one succeeded job; the id of the run."""
    job = client.get(job_id)
    report = client.report(job_id)  # a JobConflict if it has not succeeded
    settings = flat({name: job.spec[name] for name in ("model", "pruning", "calibration")})
    figures = {
        name: float(value)
        for name, value in flat(job.summary or {}).items()
        if isinstance(value, int | float)
    }
    with mlflow.start_run(run_name=job_id, tags=job.labels) as run:
        mlflow.log_params({name: str(value)[:500] for name, value in settings.items()})
        mlflow.log_metrics(figures)
        for step, layer in enumerate(report["layers"]):
            mlflow.log_metric("layer_width", float(layer["width_after"]), step=step)
        mlflow.log_dict(report, "report.json")
        mlflow.log_text(client.report_html(job_id), "report.html")
        return str(run.info.run_id)


if __name__ == "__main__":
    with StrucPruneClient() as connected:
        print(log_job(connected, sys.argv[1]))
