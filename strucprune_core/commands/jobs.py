"""`strucprune jobs submit | list | watch ...`: jobs of a service. No torch.

Calls the service at STRUCPRUNE_URL with the key STRUCPRUNE_API_KEY.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from strucprune_core.client.connection import KEY_VARIABLE, URL_VARIABLE
from strucprune_core.client.models import Job
from strucprune_core.client.synchronous import StrucPruneClient
from strucprune_core.commands.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    JsonOption,
    failures,
    local_path,
    progress_bar,
    show,
    show_estimate,
    show_warnings,
    stderr,
)
from strucprune_core.commands.job_options import JobBody, takes_job

# A person at a terminal learns soon that nothing answers; a watch of hours survives an outage.
_RETRY_SECONDS = 5.0
_WATCH_RETRY_SECONDS = 300.0

app = typer.Typer(
    help=f"Jobs of a service, at {URL_VARIABLE} with the key {KEY_VARIABLE}.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]
UrlOption = Annotated[str | None, typer.Option(envvar=URL_VARIABLE, help="URL of the service.")]


@app.command()
@takes_job(service=True)
def submit(
    body: JobBody,
    watch: Annotated[bool, typer.Option(help="Then watch it until it ends.")] = False,
    validate: Annotated[
        bool, typer.Option(help="Only say what is wrong or what it would cost.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeating it with the same job makes no second job.")
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a job and print its id."""
    with failures(as_json):
        job_body = body()
        with _client(url) as client:
            if validate:
                verdict = client.validate(job_body)
                _show(verdict.model_dump(mode="json"), as_json)
                raise typer.Exit(0 if verdict.valid else EXIT_FAILED)
            job = client.submit(job_body, idempotency_key=idempotency_key)
        if watch:
            if not as_json:
                stderr.print(f"submitted {job.id}", highlight=False)
            _watch(job.id, url, as_json)
        elif as_json:
            _print_job(job, as_json)
        else:
            sys.stdout.write(f"{job.id}\n")


@app.command(name="list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Only jobs with this label: name=value.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list, newest first.")] = 50,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    with failures(as_json), _client(url) as client:
        newest = list(
            islice(client.list(state=state, label=label, page_size=min(limit, 100)), limit)
        )
        if as_json:
            sys.stdout.write(json.dumps([_as_dict(job) for job in newest], indent=2) + "\n")
            return
        table = Table("id", "name", "state", "done", "created (UTC)", "labels", box=None)
        for job in newest:
            done = f"{job.progress.fraction:.0%}" if job.progress else ""
            labels = Text(" ".join(f"{name}={value}" for name, value in job.labels.items()))
            created = f"{job.created_at:%Y-%m-%d %H:%M}"
            table.add_row(job.id, Text(job.name or ""), job.state, done, created, labels)
        Console().print(table)


@app.command(name="show")
def show_job(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show a job as it is now."""
    with failures(as_json), _client(url) as client:
        _print_job(client.get(job), as_json)


@app.command()
def watch(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Watch a job until it ends; the exit code is 0 only if it succeeded.

    Ctrl-C stops the watching, not the job. With --json, each change is one line of JSON.
    """
    with failures(as_json):
        _watch(job, url, as_json)


@app.command()
def cancel(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job: at once if it waits, at its next safe point if it runs."""
    with failures(as_json), _client(url) as client:
        _print_job(client.cancel(job), as_json)


@app.command()
def pause(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Pause a job; its finished layers are kept."""
    with failures(as_json), _client(url) as client:
        _print_job(client.pause(job), as_json)


@app.command()
def resume(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Continue a paused job."""
    with failures(as_json), _client(url) as client:
        _print_job(client.resume(job), as_json)


@app.command()
def retry(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Run a failed or cancelled job again, from its last finished layer."""
    with failures(as_json), _client(url) as client:
        _print_job(client.retry(job), as_json)


@app.command()
def delete(
    job: JobArgument,
    outputs: Annotated[bool, typer.Option(help="Also remove the files it has published.")] = False,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a job that has ended."""
    with failures(as_json), _client(url) as client:
        client.delete(job, outputs=outputs)
        show({"id": job, "deleted": True, "outputs": outputs}, as_json)


@app.command()
def logs(job: JobArgument, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Print what a job's process has logged; with --json, a line of JSON each."""
    with failures(as_json), _client(url) as client:
        for line in client.logs(job):
            text = (
                line.model_dump_json()
                if as_json
                else f"{line.at:%Y-%m-%d %H:%M:%S} run {line.run} attempt {line.attempt} "
                f"{line.level} {line.message}"
            )
            sys.stdout.write(f"{text}\n")


@app.command()
def download(
    job: JobArgument,
    output: Annotated[
        str, typer.Option(help="Directory; made if missing. Files that are there are kept.")
    ],
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch all files of a succeeded job and compare their digests. Run again, it continues."""
    with failures(as_json), _client(url, _WATCH_RETRY_SECONDS) as client, _download_bar() as bar:
        tasks: dict[str, Any] = {}

        def show_bytes(name: str, here_bytes: int, total_bytes: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total_bytes)
            bar.update(tasks[name], completed=here_bytes)

        paths = client.download(job, local_path(output, "--output"), on_bytes=show_bytes)
    if as_json:
        sys.stdout.write(json.dumps([str(path) for path in paths], indent=2) + "\n")
    else:
        stderr.print(f"{len(paths)} files in {output}", highlight=False, markup=False)


def _watch(job_id: str, url: str | None, as_json: bool) -> None:
    with _client(url, _WATCH_RETRY_SECONDS) as client, _interruptible():
        if as_json:
            job = client.wait(job_id, on_change=_print_line)
        else:
            with progress_bar() as bar:
                job = client.wait(job_id, on_change=_Display(bar))
            _print_job(job, as_json)
    raise typer.Exit(0 if job.state == "succeeded" else EXIT_FAILED)


class _Display:
    """A bar in a terminal; elsewhere (a log file, CI) a line for each state, phase and tenth."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=1.0)
        self._last: tuple[str, int] | None = None

    def __call__(self, job: Job) -> None:
        progress = job.progress
        running = job.state == "running" and progress is not None
        label = (
            f"{progress.phase} {progress.layers_done}/{progress.layers_total}"
            if running and progress
            else job.state
        )
        fraction = progress.fraction if progress else float(job.state == "succeeded")
        if stderr.is_terminal:
            self._bar.update(self._task, completed=fraction, description=label)
            return
        step = (progress.phase if running and progress else job.state, int(fraction * 10))
        if step != self._last:
            self._last = step
            stderr.print(f"{fraction:4.0%} {label}", highlight=False)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stderr.print("no longer watching; the job goes on")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _client(url: str | None, retry_seconds: float = _RETRY_SECONDS) -> StrucPruneClient:
    # httpx logs whole URLs, and whoever has the URL of a download needs no key.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return StrucPruneClient(url, retry_seconds=retry_seconds)


def _download_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<32}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=stderr,
        transient=True,
    )


def _as_dict(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"etag"})


def _print_line(job: Job) -> None:
    sys.stdout.write(json.dumps(_as_dict(job)) + "\n")
    sys.stdout.flush()


def _print_job(job: Job, as_json: bool) -> None:
    if as_json:
        show(_as_dict(job), as_json)
        return
    facts: dict[str, Any] = {"id": job.id, "state": job.state, "attempt": job.attempt}
    if job.name is not None:
        facts["name"] = job.name
    facts["model"] = job.spec["model"]["uri"]
    facts["output"] = job.spec["output"]["uri_prefix"]
    facts["created"] = f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if job.progress is not None and not job.ended:
        now = job.progress
        facts["progress"] = f"{now.fraction:.0%}, {now.phase} {now.layers_done}/{now.layers_total}"
        if now.eta_seconds is not None:
            facts["about"] = f"{now.eta_seconds:.0f} s left"
    if job.error is not None:
        layer = "" if job.error.layer is None else f" in layer {job.error.layer}"
        remedy = job.error.remedy or ""
        facts["error"] = f"{job.error.code}{layer}: {job.error.message} {remedy}"
    for name in ("parameters", "perplexity"):
        figures = (job.summary or {}).get(name)
        if figures:
            facts[name] = f"{figures['before']:,.6g} -> {figures['after']:,.6g}"
    show(facts, as_json)
    show_warnings((job.summary or {}).get("warnings", []))


def _show(result: dict[str, Any], as_json: bool) -> None:
    """The result of a validation, one issue a line."""
    if as_json:
        show(result, as_json)
        return
    estimate = result["estimate"] or {}
    show_estimate({"valid": result["valid"], **estimate}, as_json)
    for issue in result["issues"]:
        stderr.print(f"{issue['pointer'] or ''}: {issue['detail']}", markup=False, highlight=False)
