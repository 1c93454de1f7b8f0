"""Find what the service logged to MLflow about a job: for each size, its run and how good it is.

    pip install mlflow-skinny     # or all of mlflow
    MLFLOW_TRACKING_URI=... python mlflow_run.py JOB

Prints a line for each size: id of the run, where the model is, parameters, growth of perplexity.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from mlflow.entities import Run
from mlflow.tracking import MlflowClient


def runs_of(client: MlflowClient, job_id: str) -> Iterator[Run]:
    """The runs that have a model: that of the job, or of several sizes one each."""
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(everywhere, f"tags.`strucprune.job_id` = '{job_id}'"):
        if "parameters_after" in run.data.metrics and run.info.status == "FINISHED":
            yield run


if __name__ == "__main__":
    for found in runs_of(MlflowClient(), sys.argv[1]):
        figures = found.data.metrics
        print(
            found.info.run_id,
            found.data.tags["strucprune.output_uri"],
            f"{figures['parameters_after']:.0f}",
            f"{figures.get('perplexity_ratio', float('nan')):.3f}",
        )
