"""`strucprune prune`: a job, run in this process."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from strucprune_core.commands.console import JsonOption, StepDisplay, progress_bar, stderr
from strucprune_core.commands.failures import failures
from strucprune_core.commands.job_body import parse_spec
from strucprune_core.commands.job_command import JobBody, takes_job
from strucprune_core.commands.tables import show
from strucprune_core.errors import Stopped
from strucprune_core.spec import JobSpec

if TYPE_CHECKING:
    from strucprune_core.report.sizes import AnyReport
    from strucprune_core.run import progress as core_progress


@takes_job()
def prune(
    body: JobBody,
    workspace: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Directory or s3:// prefix for finished steps; give it again to resume.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prune a model and write the smaller one with its report.

    With --workspace, a run that was stopped (Ctrl-C, a crash, a power cut) continues when the same
    command is given again, and ends with the same bytes.
    """
    with failures(as_json):
        spec = parse_spec(body())
        report = _run_prune(spec, workspace)
        if as_json:
            show(report.model_dump(mode="json"), as_json=True)
        else:
            _show(report, spec.output.uri_prefix)


def _show(report: AnyReport, output: str) -> None:
    from strucprune_core.commands.report_tables import show_report, show_sizes
    from strucprune_core.report.sizes import SizesReport

    if isinstance(report, SizesReport):
        show_sizes(report, output)
    else:
        show_report(report, output)


def _run_prune(spec: JobSpec, workspace: str | None) -> AnyReport:
    from strucprune_core.pipeline import run_job
    from strucprune_core.scratch.directories import scratch_directory, sweep
    from strucprune_core.storage.open import open_store

    interrupted = _StopOnInterrupt()
    sweep()  # Files that a killed run left.
    with scratch_directory() as scratch, progress_bar() as bar:
        show = _ProgressDisplay(bar)
        return run_job(
            spec,
            workspace=open_store(workspace or str(scratch / "workspace")),
            scratch=scratch,
            progress=show,
            stop=interrupted,
        )


class _ProgressDisplay:
    """Shows what the runner tells of a job."""

    def __init__(self, bar: Progress) -> None:
        self._line = StepDisplay(bar)

    def __call__(self, progress: core_progress.Progress) -> None:
        label = f"{progress.phase.value} {progress.layers_done}/{progress.layers_total}"
        self._line.show(progress.phase.value, label, progress.fraction, progress.eta_seconds)


class _StopOnInterrupt:
    """Ctrl-C and SIGTERM stop at the next safe point; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        self._stopped = True
        stderr.print("stopping at the next safe point …")

    def check(self) -> None:
        """Raise `Stopped` once a signal has arrived."""
        if self._stopped:
            raise Stopped(
                "interrupted", remedy="With --workspace, the same command continues the run."
            )
