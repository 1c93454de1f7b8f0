"""`strucprune jobs submit`. No torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from strucprune_core.commands.console import EXIT_FAILED, JsonOption, print_json
from strucprune_core.commands.estimate_table import show_estimate
from strucprune_core.commands.failures import failures, option_name, show_problem
from strucprune_core.commands.job_command import JobBody, takes_job
from strucprune_core.commands.jobs.service import (
    IdempotencyOption,
    UrlOption,
    WatchOption,
    connect,
)
from strucprune_core.commands.jobs.upload import note_on_uploads, ready_job
from strucprune_core.commands.jobs.watch import show_submitted
from strucprune_core.commands.tables import print_facts
from strucprune_core.commands.times import print_times


@takes_job(service=True)
def submit(
    body: JobBody,
    watch: WatchOption = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Only say what is wrong or what it would cost.")
    ] = False,
    idempotency_key: IdempotencyOption = None,
    upload_to: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Where a model and texts of this machine go before the job is submitted: "
            "s3://bucket/prefix. By default those that the service cannot read go to the folder "
            "`uploads` beside --output.",
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job and print its id.

    A model and texts of this machine are uploaded first if the service cannot read them, with the
    S3 credentials of this machine. What is there already is not sent again.
    """
    with failures(as_json):
        job_body = body()
        with connect(url) as client:
            if validate:
                verdict = client.validate(job_body)
                _show(verdict.model_dump(mode="json"), as_json)
                note_on_uploads(job_body, verdict)
                raise typer.Exit(0 if verdict.valid else EXIT_FAILED)
            ready = ready_job(client, job_body, upload_to)
            job = client.submit(ready, idempotency_key=idempotency_key)
        show_submitted(job, watch=watch, url=url, as_json=as_json)


def _show(verdict: dict[str, Any], as_json: bool) -> None:
    """The result of a validation, one issue a line."""
    if as_json:
        print_json(verdict)
    elif verdict["valid"]:
        print_facts({"valid": "yes"})
        show_estimate(verdict["estimate"], as_json)
        print_times(verdict["times"], verdict["starts_in"])
    for issue in verdict["issues"]:
        name = option_name(issue["pointer"]) if issue["pointer"] else "job"
        show_problem(issue["code"], f"{name}: {issue['detail']}")
