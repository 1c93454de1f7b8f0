"""The solve: one attempt at one job, in a process of its own, the only one that imports torch.

    python -m worker.solve < request.json

Device memory is free again when the process ends, and it can be killed at any time: finished units
are in the workspace, and the next attempt continues from there. `protocol` defines its messages.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from api.jobs import logs
from api.jobs.tracing import TRACEPARENT
from strucprune_core.errors import Stopped
from strucprune_core.models.devices import choose_device
from strucprune_core.pipeline import assist, run_job
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.report.document import Report, TaskScores, predicted_in_all
from strucprune_core.report.sizes import AnyReport, SizesReport
from strucprune_core.run.environment import environment_of
from strucprune_core.run.layer_updates import LayerUpdate, as_columns
from strucprune_core.run.progress import FinishedUnit, Progress
from strucprune_core.run.reservations import ALONE
from strucprune_core.storage.metered import MeteredStore, Traffic
from strucprune_core.storage.open import open_store
from strucprune_core.storage.store import Store
from worker.failures import as_ours
from worker.log_lines import LogLines
from worker.protocol import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    DeviceMessage,
    ErrorMessage,
    LayersMessage,
    ProgressMessage,
    Request,
    ResultMessage,
    UnitMessage,
)
from worker.solve_channel import AskedReservations, Channel, Inbox
from worker.stop import StopOnTerminate

# Not `__name__`, which is `__main__` when this file is the program.
_log = logging.getLogger("worker.solve")

# Warnings kept in the job's record; the report has all of them.
MOST_WARNINGS = 20


def run(request: Request, channel: Channel, inbox: Inbox, stop: StopOnTerminate) -> int:
    """Run the request, and return the exit status."""
    reservations = AskedReservations(channel, inbox, stop.check)

    def report_progress(progress: Progress) -> None:
        channel.send(ProgressMessage(progress=progress.as_dict()))

    def report_layers(updates: Sequence[LayerUpdate]) -> None:
        channel.send(LayersMessage(layers=as_columns(updates)))

    traffic = Traffic()

    def open_metered(uri: str) -> Store:
        return MeteredStore(open_store(uri), traffic)

    def count(unit: FinishedUnit) -> None:
        read, written = traffic.take()
        channel.send(UnitMessage(**asdict(unit), read_bytes=read, written_bytes=written))

    try:
        here = environment_of(choose_device(request.spec.runtime.device))
        channel.send(DeviceMessage(device=here.device, threads=here.threads))
        if request.part == "help":
            assist(
                request.spec,
                workspace=open_metered(request.workspace_uri),
                scratch=Path(request.scratch),
                open_store=open_metered,
                progress=report_progress,
                stop=stop,
                finished=count,
                reservations=reservations,
                task_downloads=request.task_downloads,
                rates=_usable(request),
                takes_free_memory=False,
            )
            return EXIT_DONE
        report = run_job(
            request.spec,
            workspace=open_metered(request.workspace_uri),
            scratch=Path(request.scratch),
            open_store=open_metered,
            progress=report_progress,
            stop=stop,
            finished=count,
            reservations=reservations if request.part == "lead" else ALONE,
            layers=report_layers,
            task_downloads=request.task_downloads,
            rates=_usable(request),
            # The limit follows from the specification: all workers use the same pieces.
            takes_free_memory=False,
        )
    except Stopped:
        return EXIT_STOPPED
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a Rust library is no `Exception`
        if request.part == "help":
            # The job goes on without this helper, so its owner need not know.
            _log.warning("job %s: a helper failed", request.job_id, exc_info=True)
            return EXIT_FAILED
        # The owner reads the failure in the job, the operator reads the traceback in the log.
        _log.exception("job %s failed", request.job_id)
        channel.send(ErrorMessage(error=as_ours(error).as_dict()))
        return EXIT_FAILED
    channel.send(ResultMessage(summary=summary_of(report)))
    return EXIT_DONE


def summary_of(report: AnyReport) -> dict[str, Any]:
    """The report's main figures, for the job's record."""
    return _of_sizes(report) if isinstance(report, SizesReport) else _of_one(report)


def _of_sizes(report: SizesReport) -> dict[str, Any]:
    """Those of each size, and what the job took."""
    return {
        "parameters": {"before": report.before.parameters},
        "bytes": {"before": report.before.bytes},
        "perplexity": report.perplexity_before and {"before": report.perplexity_before},
        "sizes": [
            {
                "name": each.name,
                "folder": each.folder,
                "rejected": each.rejected,
                "parameters": each.after.parameters,
                "bytes": each.after.bytes,
                "perplexity": each.perplexity,
                "perplexity_ratio": each.perplexity_ratio,
                "sparsity": each.sparsity.reached,
                "best_of_its_size": each.best_of_its_size,
            }
            for each in report.sizes
        ],
        "seconds": round(sum(phase.seconds for phase in report.phases), 3),
        "predicted_seconds": predicted_in_all(report.phases),
        "warnings": report.warnings[:MOST_WARNINGS],
    }


def _of_one(report: Report) -> dict[str, Any]:
    perplexity = report.perplexity
    return {
        "parameters": {"before": report.before.parameters, "after": report.after.parameters},
        "bytes": {"before": report.before.bytes, "after": report.after.bytes},
        "perplexity": perplexity
        and {
            "before": perplexity.before,
            "after": perplexity.after,
            "ratio": perplexity.ratio,
        },
        "tasks": report.tasks
        and {
            "retention": report.tasks.retention,
            "dense": [_short(each) for each in report.tasks.dense],
            "pruned": [_short(each) for each in report.tasks.pruned],
        },
        "sparsity": {
            "requested": report.sparsity.requested,
            "reached": report.sparsity.reached,
        },
        "seconds": round(sum(phase.seconds for phase in report.phases), 3),
        "predicted_seconds": predicted_in_all(report.phases),
        "peak_memory_bytes": {
            "host": report.memory.host_peak_bytes.measured,
            "device": report.memory.device_peak_bytes.measured,
        },
        "warnings": report.warnings[:MOST_WARNINGS],
    }


def _short(scores: TaskScores) -> dict[str, Any]:
    """A task's metrics, without what only the report shows."""
    return {
        "task": scores.task,
        "metrics": {
            each.name: {"value": each.value, "standard_error": each.standard_error}
            for each in scores.metrics
        },
    }


def _usable(request: Request) -> DeviceRates | None:
    """The worker's rates, unless the job computes on another kind of device."""
    rates, kind = request.rates, choose_device(request.spec.runtime.device).type
    return rates if rates is not None and rates.kind == kind else None


def main() -> int:
    """Read the request from standard input, run it, and return the exit status."""
    channel = Channel.take_stdout()
    stop = StopOnTerminate.install()
    inbox = Inbox(sys.stdin.fileno())
    request = inbox.request()
    logs.configure(request.log_format)
    logging.getLogger().addHandler(LogLines(channel.send, os.environ))
    TRACEPARENT.set(request.traceparent)
    with logs.about_job(request.job_id):
        return run(request, channel, inbox, stop)


if __name__ == "__main__":
    sys.exit(main())
