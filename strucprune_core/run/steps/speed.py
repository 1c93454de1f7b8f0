"""`speed`: how fast the dense and the pruned model are in transformers, and what memory they take.

A measurement that cannot be done leaves the result as it is: the unit says why, and so does the
report.
"""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX
from strucprune_core.checkpoint.writer import PlannedTensor, index_json, plan_shards, write_shard
from strucprune_core.evaluation.available_memory import available_bytes
from strucprune_core.evaluation.speed import NotMeasured, SpeedProcess, measure_in_turns
from strucprune_core.evaluation.speed_process import Request
from strucprune_core.plan import speed as plan
from strucprune_core.plan.graph import Unit
from strucprune_core.report.document import MeasuredModel
from strucprune_core.run.artifacts import Evaluate, SpeedValues, Tokens
from strucprune_core.run.context import Job
from strucprune_core.run.environment import environment_of
from strucprune_core.run.result_files import pruned_checkpoint
from strucprune_core.run.workspace import Draft
from strucprune_core.scratch.directories import scratch_directory

_SHARD_BYTES = 2 << 30


def speed(job: Job, unit: Unit, draft: Draft) -> None:
    """Measure both models in turns; writes no file.

    Raises:
        ScratchUnavailable: there is no space for the dense model as it is read.
    """
    reason = _reason_not_to(job)
    if reason is not None:
        draft.record(SpeedValues(not_measured=reason))
        return
    try:
        draft.record(_measured(job))
    except NotMeasured as error:
        draft.record(SpeedValues(not_measured=str(error)))


def _reason_not_to(job: Job) -> str | None:
    """Why both models are not loaded; None if they are."""
    if job.units.values(Evaluate("pruned")).rejected is not None:
        return "this size is not published"
    pruned = sum(path.stat().st_size for path in pruned_checkpoint(job).paths.values())
    needed = plan.tensor_bytes(job.spec, job.config, job.index.read_bytes, pruned)
    on_device = job.device.type == "cuda"
    reason = plan.over_budget(job.spec, needed, on_device=on_device)
    free = available_bytes()
    if on_device:
        free = torch.cuda.mem_get_info(job.device)[0]
    if reason is None and free is not None and needed > free:
        reason = f"both models whole take {needed:,} bytes, and {free:,} are free"
    return reason


def _measured(job: Job) -> SpeedValues:
    prompt_tokens, new_tokens = plan.shape(job.spec, job.config)
    prompt = np.asarray(job.units.array(Tokens().calibration))[0, :prompt_tokens].tolist()
    total = 2 * (plan.ROUNDS + 1)
    done = itertools.count(1)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_directory(job.scratch))
        folders: dict[MeasuredModel, Path] = {
            "dense": folder / "dense",
            "pruned": folder / "pruned",
        }
        _write_dense(job, folders["dense"])
        _link_pruned(job, folders["pruned"])
        if job.device.type == "cuda":
            torch.cuda.empty_cache()  # What this process keeps, the others may need.
        processes: dict[MeasuredModel, SpeedProcess] = {}
        loaded = []
        for name, where in folders.items():
            request = Request(
                folder=str(where),
                device=str(job.device),
                threads=torch.get_num_threads(),
                prompt=prompt,
                new_tokens=new_tokens,
            )
            processes[name] = stack.enter_context(SpeedProcess(request, job.safe_point))
            loaded.append(processes[name].loaded())
        runs = measure_in_turns(processes, plan.ROUNDS, lambda: job.tick(next(done), total))
        return SpeedValues(
            runtime=loaded[0].runtime,
            dtype=loaded[0].dtype,
            device=environment_of(job.device).device,
            threads=torch.get_num_threads(),
            prompt_tokens=len(prompt),
            new_tokens=new_tokens,
            runs=[run.model_dump() for run in runs],
            peak_bytes={name: process.peak() for name, process in processes.items()},
        )


def _write_dense(job: Job, folder: Path) -> None:
    """The dense model as it is read: with its adapter, dequantised, in the dtype asked for."""
    folder.mkdir()
    tensors = [
        PlannedTensor(name, info.dtype, info.shape) for name, info in job.index.tensors.items()
    ]
    shards = plan_shards(tensors, _SHARD_BYTES)
    for shard in shards:
        job.safe_point()
        write_shard(
            folder / shard.file_name, shard, lambda name: job.reader.tensor(name, dtype=None)
        )
    if len(shards) > 1:
        (folder / SHARD_INDEX).write_bytes(index_json(shards))
    config = json.dumps(job.index.config).encode()
    (folder / CONFIG).write_bytes(config)


def _link_pruned(job: Job, folder: Path) -> None:
    folder.mkdir()
    files = pruned_checkpoint(job)
    for name, data in files.contents.items():
        (folder / name).write_bytes(data)
    for name, path in files.paths.items():
        (folder / name).symlink_to(path.absolute())
