"""Run a worker: `python -m worker`, configured by STRUCPRUNE_* variables."""

from __future__ import annotations

from api.jobs import environment
from api.jobs.doorbell import QUEUES
from worker.app import make_app
from worker.settings import Settings


def main() -> None:
    """Work until SIGTERM: then give the running job back at its next safe point."""
    make_app(environment.read(Settings)).worker_main(
        [
            "worker",
            # One job at a time, in a child process, so that the main process always answers.
            "--pool=prefork",
            "--concurrency=1",
            f"--queues={','.join(QUEUES.values())}",
            "--loglevel=INFO",
            # Workers do not know of each other: the ledger is all they share.
            "--without-gossip",
            "--without-mingle",
        ]
    )


if __name__ == "__main__":
    main()
