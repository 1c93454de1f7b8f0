"""`run_job`: the whole job, in one process, or with the help of others that `assist`.

    inspect ─ open the workspace ─ run the pending units of the graph ─ publish

The graph is in `plan.graph`, the work of each unit in `run.steps`, how units are run in
`run.runner`, and what is finished in the workspace. So stopping anywhere and calling it again
with the same workspace continues, and ends with the same bytes. If a file of the workspace turns
out to be damaged or gone, the run looks again at what is pending.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from strucprune_core.checkpoint.adapter import open_adapter
from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec, naming_field
from strucprune_core.plan.inspection import check_texts_unchanged
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.report.document import REPORT_HTML, REPORT_JSON, Report
from strucprune_core.report.sizes import AnyReport, read_report
from strucprune_core.run.background import Background
from strucprune_core.run.layer_updates import LayerSink, ignore_layers
from strucprune_core.run.opening import Order, opened
from strucprune_core.run.output_reservation import (
    Reservation,
    documents_under,
    find_reservation,
)
from strucprune_core.run.progress import (
    AnyStop,
    FinishedUnit,
    NeverStop,
    ProgressSink,
    StopSignal,
    UnitSink,
    ignore_progress,
    ignore_unit,
)
from strucprune_core.run.progress_meter import ProgressMeter
from strucprune_core.run.publish import publish
from strucprune_core.run.reservations import ALONE, UnitReservations
from strucprune_core.run.runner import Run, help_out, run_pending
from strucprune_core.run.size_files import entries, results
from strucprune_core.run.sizes import Sizes
from strucprune_core.run.workspace import LostFile, Stored, Workspace
from strucprune_core.spec import JobSpec
from strucprune_core.storage.open import open_store as open_store_from_environment
from strucprune_core.storage.overlay import OverlayStore
from strucprune_core.storage.store import Store

T = TypeVar("T")

log = logging.getLogger(__name__)

# How often one unit may lose files in one run before the workspace itself counts as broken.
MAX_LOSSES = 3

# How long a process that assists waits for something to do. To start one means to load libraries
# and to read the model's headers, so it stays while the graph offers nothing for a moment.
PATIENCE_SECONDS = 120.0


def run_job(
    spec: JobSpec,
    *,
    workspace: Store,
    scratch: Path,
    open_store: Callable[[str], Store] = open_store_from_environment,
    progress: ProgressSink = ignore_progress,
    stop: StopSignal | None = None,
    finished: UnitSink = ignore_unit,
    reservations: UnitReservations = ALONE,
    layers: LayerSink = ignore_layers,
    task_downloads: bool = True,
    takes_free_memory: bool = True,
    rates: DeviceRates | None = None,
) -> AnyReport:
    """Prune a model to one size or to several, and publish the results.

    Args:
        spec: The job.
        workspace: Where finished units are kept; the same one resumes the job.
        scratch: Local directory for temporary files.
        open_store: Opens the stores that the spec names.
        progress: Called with reports of progress.
        stop: Asked at safe points; raising `errors.Stopped` there loses no finished unit.
        finished: Called with each unit that was done, and with the publishing.
        reservations: Keeps other processes that `assist` off the units that this one does.
        layers: Called with the energies, widths and errors of layers as they become known: first
            with those of earlier attempts, then with those of units done here or by others.
        task_downloads: Whether lm-evaluation-harness may read data of its own tasks from a hub.
        takes_free_memory: Whether a job on a GPU that names no limit of device memory is limited
            to what is free there. If not, it runs in small pieces.
        rates: Of the device, by which times are predicted; by default they are measured, which
            takes about a second.

    Returns:
        The report that was published with the checkpoint; of several sizes the one on all.

    Raises:
        StrucPruneError: see `errors`. Nothing is published unless every check has passed.
    """
    order = Order(spec, workspace, scratch, open_store, task_downloads, takes_free_memory, rates)
    with _running(order, progress, stop, finished, reservations, layers) as run:
        output = open_store(spec.output.uri_prefix)

        def attempt() -> AnyReport:
            reservation = find_reservation(output, run.sizes)
            run_pending(run)
            began_at, began = time.time(), time.monotonic()
            report = _publish(run.sizes, output, reservation, run.meter)
            seconds = time.monotonic() - began
            finished(FinishedUnit("publish", "publish", began_at, seconds))
            return report

        report = _despite_losses(run.sizes.workspace, attempt)
    run.meter.finish()
    return report


def prune(
    spec: JobSpec,
    *,
    workspace: Store,
    scratch: Path,
    open_store: Callable[[str], Store] = open_store_from_environment,
    progress: ProgressSink = ignore_progress,
    stop: StopSignal | None = None,
    finished: UnitSink = ignore_unit,
    reservations: UnitReservations = ALONE,
    layers: LayerSink = ignore_layers,
    task_downloads: bool = True,
    rates: DeviceRates | None = None,
) -> Report:
    """`run_job` of a job of one size, with its report.

    Raises:
        StrucPruneError: as `run_job`; the job has several sizes.
    """
    if spec.pruning.sizes:
        raise InvalidSpec(
            "the job has several sizes, of which no one report tells",
            field="pruning.sizes",
            remedy="Call run_job, which reports on all of them, or give pruning.sparsity.",
        )
    report = run_job(
        spec,
        workspace=workspace,
        scratch=scratch,
        open_store=open_store,
        progress=progress,
        stop=stop,
        finished=finished,
        reservations=reservations,
        layers=layers,
        task_downloads=task_downloads,
        rates=rates,
    )
    assert isinstance(report, Report)  # noqa: S101 - of one size
    return report


def assist(
    spec: JobSpec,
    *,
    workspace: Store,
    scratch: Path,
    reservations: UnitReservations,
    open_store: Callable[[str], Store] = open_store_from_environment,
    progress: ProgressSink = ignore_progress,
    stop: StopSignal | None = None,
    finished: UnitSink = ignore_unit,
    patience_seconds: float = PATIENCE_SECONDS,
    task_downloads: bool = True,
    takes_free_memory: bool = True,
    rates: DeviceRates | None = None,
) -> None:
    """Do units of a job that another process leads, which calls `run_job` with the same workspace.

    Returns once there is nothing more to do here. Whoever does a unit, its bytes are the same;
    nothing is published, and what goes wrong here is no failure of the job.

    Args:
        spec: The job.
        workspace: The one that the leader works in.
        scratch: Local directory for temporary files.
        reservations: Keeps the leader and others off the units that this process does.
        open_store: Opens the stores that the spec names.
        progress: Shows that this process is alive; of the job's progress it knows only a part.
        stop: As for `run_job`.
        finished: Called with each unit that was done here.
        patience_seconds: How long to wait for something to do.
        task_downloads: As for `run_job`.
        takes_free_memory: As for `run_job`.
        rates: As for `run_job`.

    Raises:
        StrucPruneError: see `errors`.
    """
    order = Order(spec, workspace, scratch, open_store, task_downloads, takes_free_memory, rates)
    with _running(order, progress, stop, finished, reservations) as run:
        _despite_losses(run.sizes.workspace, lambda: help_out(run, patience_seconds))


def _despite_losses(workspace: Workspace, attempt: Callable[[], T]) -> T:
    """What the attempt returns; repeated whenever the workspace has lost something."""
    losses: Counter[str] = Counter()
    while True:
        try:
            return attempt()
        except LostFile as lost:
            losses[lost.unit] += 1
            if losses[lost.unit] > MAX_LOSSES:
                raise
            log.warning("recomputing what the workspace has lost: %s", lost.message)
            workspace.refresh()


@contextlib.contextmanager
def _running(
    order: Order,
    progress: ProgressSink,
    stop: StopSignal | None,
    finished: UnitSink,
    reservations: UnitReservations,
    layers: LayerSink = ignore_layers,
) -> Iterator[Run]:
    """This process's part in the job, ready to run."""
    storing: Background[tuple[Stored, float]] = Background()
    handing_on: Background[None] = Background()
    meter = ProgressMeter(progress, AnyStop(stop or NeverStop(), storing, handing_on))
    with (
        storing,
        handing_on,
        opened(order, meter, storing.tick, reservations) as (sizes, memory, following),
    ):
        yield Run(
            sizes,
            meter,
            memory,
            finished,
            reservations,
            storing,
            handing_on,
            following,
            layers,
        )


def _publish(
    sizes: Sizes, output: Store, reservation: Reservation | None, meter: ProgressMeter
) -> AnyReport:
    """Copy the finished checkpoints and the report to the output."""
    documents = {name: _document(sizes, name) for name in (REPORT_JSON, REPORT_HTML)}
    files = results(sizes, _document(sizes, MODEL_CARD))
    _check_unchanged(sizes, files, read_report(documents[REPORT_JSON]))
    with naming_field("output.uri_prefix"):
        if reservation is not None:
            documents = documents_under(reservation, documents, output, sizes)
        with naming_field("workspace"):
            sizes.workspace.keep_reservation(output.uri, documents[REPORT_JSON])
        report = read_report(documents[REPORT_JSON])
        publish(output, files, report.files, documents, meter.publishing)
    return report


def _document(sizes: Sizes, name: str) -> bytes:
    return sizes.workspace.file(*sizes.document(name)).read_bytes()


def _check_unchanged(sizes: Sizes, files: OverlayStore, report: AnyReport) -> None:
    """Check that what goes out is what was computed and reported.

    Raises:
        InvalidCheckpoint: the model was written again meanwhile, or a file that is copied from it.
        InvalidText: a text was.
    """
    job = sizes.first
    check_texts_unchanged(job.spec, job.open_store, job.texts, *job.texts)
    now = open_checkpoint(job.index.store)
    if job.spec.model.adapter_uri is not None:
        adapter = open_adapter(job.open_store(job.spec.model.adapter_uri))
        now = replace(now, adapter=adapter.summary())
    same_model = now.version() == job.index.version()
    if not same_model or entries(sizes, files) != report.files:
        raise InvalidCheckpoint(
            f"the model under {job.index.store.uri} changed while the job ran",
            field="model.uri",
            remedy="Submit the job again, with a new output prefix; give other models a prefix of "
            "their own.",
        )
