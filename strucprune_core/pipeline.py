"""`prune`: the whole job, in one process.

    inspect ─ open the workspace ─ run the pending units of the graph, in order ─ publish

The graph is in `units`, the work of each unit in `steps`, what is finished in the workspace. So
stopping anywhere and calling `prune` again with the same workspace continues, and ends with the
same bytes. A file of the workspace that turns out to be damaged or gone makes the run look again
at what is pending.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from strucprune_core.checkpoint.index import CheckpointIndex, open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.devices import choose_device, settle_vector_math
from strucprune_core.digests import sha256_of_bytes
from strucprune_core.errors import (
    InvalidCheckpoint,
    OutOfMemory,
    OutputNotEmpty,
    StrucPruneError,
    naming_field,
)
from strucprune_core.evaluation.memory import MemoryMeter, return_free_memory
from strucprune_core.inspection import check_output_usable, inspect_job
from strucprune_core.models.config import ModelConfig
from strucprune_core.planner.costs import unit_costs
from strucprune_core.planner.forward import layer_bytes
from strucprune_core.planner.plan import plan_job
from strucprune_core.progress import (
    FinishedUnit,
    NeverStop,
    ProgressSink,
    StopSignal,
    UnitSink,
    ignore_progress,
    ignore_unit,
)
from strucprune_core.progress_meter import ProgressMeter
from strucprune_core.publish import claim_of, publish
from strucprune_core.report import REPORT_HTML, REPORT_JSON, Report
from strucprune_core.report_page import render_html
from strucprune_core.scratch import scratch_errors
from strucprune_core.spec import JobSpec
from strucprune_core.steps.allocation import curve, probe
from strucprune_core.steps.assemble import assemble
from strucprune_core.steps.capture import capture
from strucprune_core.steps.distill import distill
from strucprune_core.steps.exports import check_export, export_blocks, export_gguf, published
from strucprune_core.steps.gradients import gradient
from strucprune_core.steps.job import Job
from strucprune_core.steps.judge import evaluate, verify
from strucprune_core.steps.pricing import allocate, price
from strucprune_core.steps.recover import recover, replay
from strucprune_core.steps.report import published_files, report
from strucprune_core.steps.rounds import review, trial
from strucprune_core.steps.solve import solve
from strucprune_core.steps.tokens import embeddings, tokens
from strucprune_core.storage.open import open_store as open_store_from_environment
from strucprune_core.storage.overlay import OverlayStore
from strucprune_core.storage.read_ahead import ReadAheadStore
from strucprune_core.storage.store import Store
from strucprune_core.units import Unit, pending, publication
from strucprune_core.workspace import Draft, LostFile, Workspace

log = logging.getLogger(__name__)

# How often one unit may lose files in one run before the workspace itself is taken for broken.
MAX_LOSSES = 3

# Disk for weights that were read from afar: some layers, so that one that passes in panels is read
# from there once.
CACHE_BYTES, CACHE_LAYERS = 512 * 2**20, 2

# Kinds of units whose index is a layer.
_OF_A_LAYER = ("capture", "curve", "trial", "solve", "recover")

Step = Callable[[Job, Unit, Draft], None]
STEPS: dict[str, Step] = {
    "tokens": tokens,
    "embed": embeddings,
    "capture": capture,
    "curve": curve,
    "probe": probe,
    "gradient": gradient,
    "price": price,
    "trial": trial,
    "review": review,
    "allocate": allocate,
    "solve": solve,
    "replay": replay,
    "recover": recover,
    "distill": distill,
    "assemble": assemble,
    "gguf": export_gguf,
    "block_configs": export_blocks,
    "check": check_export,
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
    finished: UnitSink = ignore_unit,
) -> Report:
    """Prune a model and publish the result.

    Args:
        spec: The job.
        workspace: Where finished units are kept; the same one resumes the job.
        scratch: Local directory for temporary files.
        open_store: Opens the stores that the spec names.
        progress: Told about progress.
        stop: Asked at safe points; raising `errors.Stopped` there loses no finished unit.
        finished: Told of each unit that was done, and of the publishing.

    Returns:
        The report that was published with the checkpoint.

    Raises:
        StrucPruneError: see `errors`. Nothing is published unless every check has passed.
    """
    facts = inspect_job(spec, open_store, check_output=False)
    index = facts.model.index
    output = open_store(spec.output.uri_prefix)
    meter = ProgressMeter(progress, stop or NeverStop())
    fingerprint = f"{spec.result_fingerprint()} {index.version()}"
    with naming_field("workspace"):
        kept = Workspace(
            workspace,
            scratch / "files",
            sha256_of_bytes(fingerprint.encode()),
            # A unit whose files are being stored is better finished than stopped.
            on_upload=lambda done: meter.alive(),
            on_download=lambda done: meter.safe_point(),
        )
    device = choose_device(spec.runtime.device)
    settle_vector_math()
    losses: Counter[str] = Counter()
    limit = spec.runtime.device_memory_bytes
    with (
        _read_ahead(index, facts.model.config, scratch) as weights,
        MemoryMeter(device, limit).running() as memory,
    ):
        job = Job(
            spec=spec,
            index=index,
            config=facts.model.config,
            reader=TensorReader(weights),
            workspace=kept,
            scratch=scratch,
            device=device,
            open_store=open_store,
            tick=meter.tick,
            safe_point=meter.safe_point,
            plan=plan_job(spec, facts.model.config),
        )
        while True:
            try:
                claim = _claim(output, kept)
                _run_pending(job, meter, memory, finished)
                began_at, began = time.time(), time.monotonic()
                result = _publish(job, output, claim, meter)
                seconds = time.monotonic() - began
                finished(FinishedUnit("publish", "publish", began_at, seconds))
                break
            except LostFile as lost:
                losses[lost.unit] += 1
                if losses[lost.unit] > MAX_LOSSES:
                    raise
                log.warning("%s: going on with what is left", lost.message)
                kept.refresh()
    meter.finish()
    return result


@contextlib.contextmanager
def _read_ahead(
    index: CheckpointIndex, config: ModelConfig, scratch: Path
) -> Iterator[CheckpointIndex]:
    """The checkpoint with its weights read through a cache if they lie on another machine."""
    if all(index.store.local_path(name) is not None for name in index.file_sizes):
        yield index
        return
    layer = max(layer_bytes(config, number) for number in range(config.layers))
    store = ReadAheadStore(index.store, scratch, max(CACHE_BYTES, CACHE_LAYERS * layer))
    try:
        yield replace(index, store=store)
    finally:
        store.close()


def _claim(output: Store, workspace: Workspace) -> bytes | None:
    """The report with which this very job claimed the output earlier; None if it is empty.

    Raises:
        OutputNotEmpty: it holds something else.
    """
    with naming_field("output.uri_prefix"):
        try:
            check_output_usable(output)
            return None
        except OutputNotEmpty:
            claim = claim_of(output)
            ours = claim == workspace.claim() or claim == _finished_report(workspace)
            if claim is None or not ours:
                raise
            return claim


def _finished_report(workspace: Workspace) -> bytes | None:
    if workspace.manifest("report") is None:
        return None
    try:
        return workspace.file("report", REPORT_JSON).read_bytes()
    except LostFile:  # It will be made again.
        return None


def _run_pending(job: Job, meter: ProgressMeter, memory: MemoryMeter, finished: UnitSink) -> None:
    todo = _pending(job)
    meter.plan(job.graph, todo, unit_costs(job.graph, job.spec, job.config, job.panels))
    for unit in todo:
        meter.begin(unit)
        finished(_run(job, unit, memory))
        meter.end(unit)


def _publish(job: Job, output: Store, claim: bytes | None, meter: ProgressMeter) -> Report:
    """Copy the finished checkpoint and its report to the output."""
    names = (REPORT_JSON, REPORT_HTML)
    documents = {name: job.workspace.file("report", name).read_bytes() for name in names}
    if claim is not None and claim != documents[REPORT_JSON]:
        # The report got lost after it was published, and a second one tells other times.
        page = render_html(Report.model_validate_json(claim))
        documents = {REPORT_JSON: claim, REPORT_HTML: page.encode()}
    result = Report.model_validate_json(documents[REPORT_JSON])
    checkpoint = published(job)
    _check_unchanged(job, checkpoint, result)
    job.workspace.keep_claim(documents[REPORT_JSON])
    with naming_field("output.uri_prefix"):
        publish(output, checkpoint, result.files, documents, meter.publishing)
    return result


def _check_unchanged(job: Job, checkpoint: OverlayStore, result: Report) -> None:
    """Check that what goes out is what was computed and reported.

    Raises:
        InvalidCheckpoint: the model was written again meanwhile, or a file that is copied from it.
    """
    same_model = open_checkpoint(job.index.store).version() == job.index.version()
    if not same_model or published_files(job, checkpoint) != result.files:
        raise InvalidCheckpoint(
            f"the model under {job.index.store.uri} changed while the job ran",
            field="model.uri",
            remedy="Submit the job again, with a new output prefix; give other models a prefix of "
            "their own.",
        )


def _pending(job: Job) -> list[Unit]:
    """The units to run: the unfinished ones, and those whose files are missing where needed."""
    units = [*job.graph, publication(job.graph)]
    finished = {unit.name for unit in units if job.workspace.manifest(unit.name) is not None}
    needed = {read for unit in units for read in unit.reads}
    present = {read for read in needed if job.workspace.has_file(*read)}
    return pending(units, finished, present)[:-1]


def _run(job: Job, unit: Unit, memory: MemoryMeter) -> FinishedUnit:
    """Compute one unit and commit it."""
    began_at, began = time.time(), time.monotonic()
    return_free_memory()
    memory.take_host_peak()
    memory.take_device_peak()
    job.workspace.forget(unit.name)  # A unit that runs again replaces its old manifest.
    try:
        # Stores have errors of their own: what else the system refuses is scratch.
        with scratch_errors(f"what {unit.name} works on"), job.workspace.draft() as draft:
            with memory.counting():
                STEPS[unit.kind](job, unit, draft)
            host_peak, device_peak = memory.take_host_peak(), memory.take_device_peak()
            with naming_field("workspace"):
                job.workspace.commit(
                    unit.name,
                    draft,
                    seconds=round(time.monotonic() - began, 4),
                    host_peak_bytes=host_peak,
                    device_peak_bytes=device_peak,
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
    seconds = time.monotonic() - began
    log.info("%s finished in %.1f s", unit.name, seconds)
    return FinishedUnit(unit.name, unit.kind, began_at, seconds, host_peak, device_peak)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out: torch's CPU allocator says so with a plain RuntimeError."""
    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return typed or "DefaultCPUAllocator" in str(error)


def _out_of_memory(unit: Unit, error: BaseException) -> OutOfMemory:
    """The typed error; smaller micro-batches help only where tokens are pushed through layers."""
    pushes_tokens = unit.kind in ("capture", "probe", "distill", "evaluate")
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
    return unit.index if unit.kind in _OF_A_LAYER else None
