"""Opens a job for one process: inspected, planned, its workspace and its weights at hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from strucprune_core.calibration.own_tokenizer import with_tokenizer
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.errors import naming_field
from strucprune_core.evaluation.device_rates import measured_rates
from strucprune_core.export.checks import check_installed, check_vocabulary
from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.devices import (
    choose_device,
    computing_on,
    matrix_products_in,
    settle_vector_math,
    solve_dtype,
)
from strucprune_core.models.own_head import with_own_head
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.graph import texts_behind
from strucprune_core.plan.inspection import (
    inspect_job,
    job_fingerprint,
    text_versions,
)
from strucprune_core.plan.memory.forward import layer_bytes
from strucprune_core.plan.pieces import plan_job
from strucprune_core.plan.pins import pinned_spec
from strucprune_core.plan.precision import precision_of
from strucprune_core.plan.rates import DeviceRates
from strucprune_core.plan.search import labels
from strucprune_core.plan.sizes import own_units
from strucprune_core.run.context import Job
from strucprune_core.run.device_memory import free_bytes, with_device_memory
from strucprune_core.run.finished_units import UnitsOfSize
from strucprune_core.run.following import Following
from strucprune_core.run.memory_meter import MemoryMeter
from strucprune_core.run.pins import pinned_in
from strucprune_core.run.progress_meter import ProgressMeter
from strucprune_core.run.reservations import UnitReservations
from strucprune_core.run.sizes import Sizes
from strucprune_core.run.workspace import Workspace
from strucprune_core.spec import GGUF_EXPORTS, JobSpec
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.read_ahead import CACHE_BYTES, ReadAheadStore
from strucprune_core.storage.store import Store, Tick

# Layers that the cache of weights from another machine holds at least, so that one that passes in
# panels is read from there once.
CACHE_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Order:
    """What a process is to work on, and where.

    Attributes:
        spec: The job.
        workspace: Where finished units are kept.
        scratch: Local directory for temporary files.
        open_store: Opens the stores that the spec names.
        task_downloads: Whether data of tasks may come from a hub.
        takes_free_memory: Whether a job on a GPU that names no limit is limited to what is free.
        rates: Of the device, by which times are predicted; None: they are measured first.
    """

    spec: JobSpec
    workspace: Store
    scratch: Path
    open_store: Callable[[str], Store]
    task_downloads: bool = True
    takes_free_memory: bool = True
    rates: DeviceRates | None = None


@contextmanager
def opened(
    order: Order, meter: ProgressMeter, on_upload: Tick, reservations: UnitReservations
) -> Iterator[tuple[Sizes, MemoryMeter, Following]]:
    """The job with its sizes, the meter of this process's memory, and how it waits for others.

    Args:
        order: What to open.
        meter: Reports progress, and asks for stops.
        on_upload: Called now and then while a unit is stored.
        reservations: Which units others have.

    Raises:
        StrucPruneError: the job cannot run; see `plan.inspection`.
    """
    spec = pinned_spec(order.spec, partial(pinned_in, order.workspace))
    order = replace(order, spec=spec)
    texts = text_versions(spec, order.open_store)  # before anything is read of them
    job_facts = inspect_job(
        spec,
        order.open_store,
        check_output=False,
        workspace=order.workspace.uri,
        task_downloads=order.task_downloads,
    )
    spec, facts = job_facts.spec, job_facts.model
    device = choose_device(spec.runtime.device)
    if order.takes_free_memory:
        spec = with_device_memory(spec, order.workspace, partial(free_bytes, device))
    order = replace(order, spec=spec)
    check_installed(spec.pruning.exports)
    workspace = _workspace(order, facts.index, texts, meter, on_upload)
    following = Following(workspace, reservations, meter.safe_point)
    facts = _with_tokenizer(facts, spec)
    precision = precision_of(spec, facts, "cuda" if device.type == "cuda" else "cpu")
    settle_vector_math()
    rates = order.rates or measured_rates(device, torch.get_num_threads())
    with (
        computing_on(device),
        _read_ahead(facts.index, facts.config, order.scratch) as weights,
        MemoryMeter(device, spec.runtime.device_memory_bytes).running() as memory,
        matrix_products_in(precision),
    ):
        with naming_field("model.uri"):
            config = with_own_head(facts.config, weights, meter.safe_point)
        transfers = Transfers()
        reader = TensorReader(weights, lambda size: transfers.count(read=size))

        def of_size(size: str, alone: JobSpec) -> Job:
            job = Job(
                spec=alone,
                size=size,
                index=facts.index,
                config=config,
                reader=reader,
                workspace=workspace,
                scratch=order.scratch,
                device=device,
                open_store=order.open_store,
                texts=texts,
                fingerprint=job_fingerprint(alone, facts.index, texts),
                tick=meter.tick,
                safe_point=meter.safe_point,
                plan=plan_job(alone, config),
                following=following,
                rates=rates,
                task_downloads=order.task_downloads,
                transfers=transfers,
                precision=precision,
                solve_dtype=solve_dtype(device),
            )
            if not size:
                return job
            return replace(job, workspace=UnitsOfSize(workspace, size, own_units(job.graph)))

        alone = spec.by_size() if not spec.tries else dict.fromkeys(labels(spec.tries), spec)
        jobs = {size: of_size(size, each) for size, each in alone.items()}
        sizes = Sizes(spec, jobs, workspace, job_fingerprint(spec, facts.index, texts))
        yield sizes, memory, following


def _with_tokenizer(facts: ModelFacts, spec: JobSpec) -> ModelFacts:
    """The model with a tokenizer.json. What inspection could not check of a new one is checked."""
    index = with_tokenizer(facts.index)
    if index is not facts.index and set(GGUF_EXPORTS) & set(spec.pruning.exports):
        check_vocabulary(facts.config, index)
    return replace(facts, index=index)


def _workspace(
    order: Order,
    index: CheckpointIndex,
    texts: Mapping[str, str],
    meter: ProgressMeter,
    on_upload: Tick,
) -> Workspace:
    """The finished units of this very job: of its specification, its model and its texts."""
    every_text = sorted(texts)
    # Where the sparsity is found on a text, all that follows from the sparsity depends on the text.
    behind = (lambda _: every_text) if order.spec.tries else texts_behind
    model_and_spec = f"{order.spec.result_fingerprint()} {index.version()}"
    with naming_field("workspace"):
        return Workspace(
            order.workspace,
            order.scratch / "files",
            sha256_of_bytes(model_and_spec.encode()),
            versions=lambda unit: json.dumps([texts.get(text) for text in behind(unit)]),
            on_upload=on_upload,
            on_download=meter.fetching,
        )


@contextmanager
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
