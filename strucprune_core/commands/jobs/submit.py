"""`strucprune jobs submit`. No torch."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from strucprune_core.commands.console import EXIT_FAILED, JsonOption, print_json, stderr
from strucprune_core.commands.estimate_table import show_estimate
from strucprune_core.commands.failures import failures, option_name, show_problem
from strucprune_core.commands.job_command import JobBody, takes_job
from strucprune_core.commands.jobs.service import UrlOption, connect
from strucprune_core.commands.jobs.upload import option_to_upload, with_uploads
from strucprune_core.commands.jobs.view import print_job
from strucprune_core.commands.jobs.watch import watch_job
from strucprune_core.commands.tables import print_facts
from strucprune_core.errors import InvalidSpec


@takes_job(service=True)
def submit(
    body: JobBody,
    watch: Annotated[bool, typer.Option("--watch", help="Then watch it until it ends.")] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Only say what is wrong or what it would cost.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Repeating it with the same job makes no second job."),
    ] = None,
    upload_to: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Where a model and texts of this machine go before the job is submitted: "
            "s3://bucket/prefix. By default the folder `uploads` beside --output.",
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job and print its id.

    A model or a text of this machine is uploaded first, with the S3 credentials of this machine.
    What is there already is not sent again.
    """
    with failures(as_json):
        job_body = body()
        with connect(url) as client:
            if validate:
                _refuse_local(option_to_upload(job_body, upload_to))
                verdict = client.validate(job_body)
                _show(verdict.model_dump(mode="json"), as_json)
                raise typer.Exit(0 if verdict.valid else EXIT_FAILED)
            job_body = with_uploads(job_body, upload_to)
            job = client.submit(job_body, idempotency_key=idempotency_key)
        if watch:
            if not as_json:
                stderr.print(f"submitted {job.id}", highlight=False)
            watch_job(job.id, url, as_json)
        elif as_json:
            print_job(job, as_json)
        else:
            sys.stdout.write(f"{job.id}\n")


def _refuse_local(option: str | None) -> None:
    """A check uploads nothing, and without that the service cannot look at local files.

    Raises:
        InvalidSpec: an option names files of this machine.
    """
    if option is not None:
        raise InvalidSpec(
            "it is on this machine, where the service cannot read it",
            field=option,
            remedy="Use strucprune estimate, which checks the same here, or submit the job.",
        )


def _show(verdict: dict[str, Any], as_json: bool) -> None:
    """The result of a validation, one issue a line."""
    if as_json:
        print_json(verdict)
    elif verdict["valid"]:
        print_facts({"valid": "yes"})
        show_estimate(verdict["estimate"], as_json)
    for issue in verdict["issues"]:
        name = option_name(issue["pointer"]) if issue["pointer"] else "job"
        show_problem(issue["code"], f"{name}: {issue['detail']}")
