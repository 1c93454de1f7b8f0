"""Run a worker: `python -m worker`, configured by STRUCPRUNE_* variables."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from api.jobs import environment
from api.jobs.doorbell import ALL_QUEUES
from api.jobs.tracing import check_configured
from strucprune_core.errors import ScratchUnavailable
from strucprune_core.evaluation.known_rates import known_rates
from strucprune_core.scratch.directories import scratch_directory, sweep
from worker.app import make_app
from worker.attempt_mark import AttemptMark, read_mark
from worker.child import SOLVE
from worker.left_attempts import conclude_left
from worker.settings import Settings
from worker.watch import forget_drain


def main(solve: Sequence[str] = SOLVE) -> None:
    """Serve jobs until SIGTERM, which gives the running job back at its next safe point.

    Args:
        solve: The program that does a job's work; benchmarks of the service replace it.
    """
    settings = environment.read(Settings)
    check_configured()
    marks = _prepare_scratch(settings)
    _forget_drain(settings)
    conclude_left([mark for mark in marks if mark.out_of_memory()], settings)
    # Before the first job, so that neither disturbs the other.
    rates = known_rates(settings.scratch_directory or Path(tempfile.gettempdir()))
    make_app(settings, solve, rates).worker_main(
        [
            "worker",
            # One job at a time, in a child process, so that the main process always answers.
            "--pool=prefork",
            "--concurrency=1",
            f"--queues={','.join(ALL_QUEUES)}",
            "--loglevel=INFO",
            # Workers do not know of each other: the ledger is all they share.
            "--without-gossip",
            "--without-mingle",
        ]
    )


def _prepare_scratch(settings: Settings) -> list[AttemptMark]:
    """Remove what crashed workers left, and check that files can be made; else end the program.

    Returns:
        The marks of attempts that ended with their worker.
    """
    marks: list[AttemptMark] = []

    def note(directory: Path) -> None:
        mark = read_mark(directory)
        if mark is not None:
            marks.append(mark)

    try:
        sweep(settings.scratch_directory, note)
        with scratch_directory(settings.scratch_directory):
            pass
    except ScratchUnavailable as error:
        sys.exit(f"Cannot start: {error}")
    return marks


def _forget_drain(settings: Settings) -> None:
    """Remove an earlier worker's drain file; ends the program if that cannot be done."""
    try:
        forget_drain(settings.drain_file)
    except OSError as error:
        # The file would drain this worker at once, and every one that follows.
        sys.exit(
            f"Cannot start: the drain file {settings.drain_file} cannot be removed "
            f"({error.strerror}); set STRUCPRUNE_DRAIN_FILE to a file in a writable directory"
        )


if __name__ == "__main__":
    main()
