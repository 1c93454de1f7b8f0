"""`prune`: the whole job, in one process.

    inspect ─ open the workspace ─ run the pending units of the graph, in order ─ publish

The graph is in `units`, the work of each unit in `steps`, what is finished in the workspace. So
stopping anywhere and calling `prune` again with the same workspace continues, and ends with the
same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from strucprune_core.devices import choose_device, settle_vector_math
from strucprune_core.errors import (
    OutOfMemory,
    OutputNotEmpty,
    StrucPruneError,
    naming_field,
)
from strucprune_core.evaluation.memory import MemoryMeter, return_free_memory
from strucprune_core.inspection import check_output_empty, inspect_job
from strucprune_core.progress import NeverStop, ProgressSink, StopSignal, ignore_progress
from strucprune_core.progress_meter import ProgressMeter
from strucprune_core.publish import is_claimed_by, publish
from strucprune_core.report import REPORT_HTML, REPORT_JSON, Report
from strucprune_core.spec import JobSpec
from strucprune_core.steps.allocation import allocate, curve, probe
from strucprune_core.steps.assemble import assemble, pruned_checkpoint
from strucprune_core.steps.capture import capture
from strucprune_core.steps.costs import unit_costs
from strucprune_core.steps.job import Job
from strucprune_core.steps.judge import evaluate, verify
from strucprune_core.steps.recover import recover, replay
from strucprune_core.steps.report import load_report, report
from strucprune_core.steps.solve import solve
from strucprune_core.steps.tokens import embeddings, tokens
from strucprune_core.storage.open import open_store as open_store_from_environment
from strucprune_core.storage.store import Store
from strucprune_core.units import Unit, pending, publication
from strucprune_core.workspace import Draft, Workspace

log = logging.getLogger(__name__)

Step = Callable[[Job, Unit, Draft], None]
STEPS: dict[str, Step] = {
    "tokens": tokens,
    "embed": embeddings,
    "capture": capture,
    "curve": curve,
    "probe": probe,
    "allocate": allocate,
    "solve": solve,
    "replay": replay,
    "recover": recover,
    "assemble": assemble,
    "evaluate": evaluate,
    "verify": verify,
    "report": report,
}


def prune(
    spec: JobSpec,
    *,
    workspace: Store,
    scratch: Path,
    open_store: Callable[[str], Store] = open_store_from_environment,
    progress: ProgressSink = ignore_progress,
    stop: StopSignal | None = None,
) -> Report:
    """Prune a model and publish the result.

    Args:
        spec: The job.
        workspace: Where finished units are kept; the same one resumes the job.
        scratch: Local directory for temporary files.
        open_store: Opens the stores that the spec names.
        progress: Told about progress.
        stop: Asked at safe points; raising `errors.Stopped` there loses no finished unit.

    Returns:
        The report that was published with the checkpoint.

    Raises:
        StrucPruneError: see `errors`. Nothing is published unless every check has passed.
    """
    facts = inspect_job(spec, open_store, check_output=False)
    output = open_store(spec.output.uri_prefix)
    config = facts.model.config
    fingerprint = f"{spec.result_fingerprint()} {facts.model.index.version()}"
    kept = Workspace(workspace, scratch / "files", hashlib.sha256(fingerprint.encode()).hexdigest())
    _check_output(output, kept)
    device = choose_device(spec.runtime.device)
    settle_vector_math()
    meter = ProgressMeter(progress, stop or NeverStop())
    job = Job(
        spec=spec,
        index=facts.model.index,
        config=config,
        workspace=kept,
        scratch=scratch,
        device=device,
        open_store=open_store,
        tick=meter.tick,
    )
    todo = _pending(job)
    meter.plan(job.graph, todo, unit_costs(job))
    with MemoryMeter(device).running() as memory:
        for unit in todo:
            meter.begin(unit)
            _run(job, unit, memory)
            meter.end(unit)
    reports = {name: kept.file("report", name) for name in (REPORT_JSON, REPORT_HTML)}
    result = load_report(reports[REPORT_JSON])
    with naming_field("output.uri_prefix"):
        publish(output, pruned_checkpoint(job), result.files, reports, meter.tick)
    meter.finish()
    return result


def _check_output(output: Store, workspace: Workspace) -> None:
    """Refuse an output that holds anything but what this very job began to publish."""
    with naming_field("output.uri_prefix"):
        try:
            check_output_empty(output)
        except OutputNotEmpty:
            if workspace.manifest("report") is None:
                raise
            if not is_claimed_by(output, workspace.file("report", REPORT_JSON).read_bytes()):
                raise


def _pending(job: Job) -> list[Unit]:
    """The units to run: the unfinished ones, and those whose files are missing where needed."""
    units = [*job.graph, publication(job.graph)]
    finished = {unit.name for unit in units if job.workspace.manifest(unit.name) is not None}
    needed = {read for unit in units for read in unit.reads}
    present = {read for read in needed if job.workspace.has_file(*read)}
    return pending(units, finished, present)[:-1]


def _run(job: Job, unit: Unit, memory: MemoryMeter) -> None:
    """Compute one unit and commit it."""
    began = time.monotonic()
    return_free_memory()
    memory.take_host_peak()
    memory.take_device_peak()
    job.workspace.forget(unit.name)  # A unit that runs again replaces its old manifest.
    try:
        with job.workspace.draft() as draft:
            STEPS[unit.kind](job, unit, draft)
            job.workspace.commit(
                unit.name,
                draft,
                seconds=round(time.monotonic() - began, 4),
                host_peak_bytes=memory.take_host_peak(),
                device_peak_bytes=memory.take_device_peak(),
            )
    except StrucPruneError as error:
        error.phase = error.phase or unit.phase.value
        error.layer = _layer_of(unit) if error.layer is None else error.layer
        raise
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise _out_of_memory(unit, error) from error
    for owner, name in unit.releases:
        job.workspace.release(owner, name)
    log.info("%s finished in %.1f s", unit.name, time.monotonic() - began)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out: torch's CPU allocator says so with a plain RuntimeError."""
    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return typed or "DefaultCPUAllocator" in str(error)


def _out_of_memory(unit: Unit, error: BaseException) -> OutOfMemory:
    """The typed error; smaller micro-batches help only where tokens are pushed through layers."""
    pushes_tokens = unit.kind in ("capture", "probe", "evaluate")
    return OutOfMemory(
        f"out of memory in {unit.name}: {error}",
        field="runtime.micro_batch_tokens" if pushes_tokens else None,
        remedy="Lower runtime.micro_batch_tokens, or use a machine with more memory."
        if pushes_tokens
        else "Use a machine with more memory; `strucprune_core.estimate` says how much.",
        phase=unit.phase.value,
        layer=_layer_of(unit),
    )


def _layer_of(unit: Unit) -> int | None:
    return unit.index if unit.kind in ("capture", "curve", "solve", "recover") else None
