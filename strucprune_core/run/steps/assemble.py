"""`assemble.s`: write one file of the pruned checkpoint; and the checkpoint as a whole to read.

Assembling only cuts and copies: whichever machine does it, the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from strucprune_core.checkpoint.file_names import SHARD_INDEX
from strucprune_core.checkpoint.index import SIDE_FILES
from strucprune_core.checkpoint.reader import PIECE_BYTES
from strucprune_core.checkpoint.writer import PlannedTensor, Shard, index_json, write_shard
from strucprune_core.export.layouts import side_files
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.models.tiles import Tiles
from strucprune_core.plan.graph import Unit
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.storage.overlay import OverlayStore

SHARD_FILE = "shard.safetensors"


def assemble(job: Job, unit: Unit, draft: Draft) -> None:
    """Write shard.safetensors: one file of the pruned checkpoint."""
    shard = pruned_shards(job)[unit.index]
    write_shard(draft.path(SHARD_FILE), shard, produced(job, shard, job.pruned_source()))


def produced(job: Job, shard: Shard, source: WeightSource) -> Callable[[str], Iterator[Tensor]]:
    """The tensors of a file of a checkpoint in pieces, each asked for once; safe points between."""
    planned = {tensor.name: tensor for tensor in shard.tensors}
    done = told = 0

    def produce(name: str) -> Iterator[Tensor]:
        nonlocal done, told
        for start, stop in _pieces(planned[name], job.tiles):
            if done >= told:
                job.tick(done, shard.size_bytes)
                told = done + PIECE_BYTES
            rows = source.rows(name, start, stop, dtype=None)
            done += rows.nbytes
            yield rows

    return produce


def _pieces(tensor: PlannedTensor, tiles: Tiles) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) to be in memory together."""
    step = max(1, PIECE_BYTES * tensor.shape[0] // max(1, tensor.size_bytes))
    if tiles.weight_rows is not None:
        step = min(step, tiles.weight_rows)
    for start in range(0, tensor.shape[0], step):
        yield start, min(start + step, tensor.shape[0])


def pruned_shards(job: Job) -> list[Shard]:
    """The dense shards with the pruned shapes."""
    shapes = expected_tensors(job.pruned_config)

    def cut(tensor: PlannedTensor) -> PlannedTensor:
        return replace(tensor, shape=shapes[tensor.name])

    return [
        replace(shard, tensors=tuple(cut(tensor) for tensor in shard.tensors))
        for shard in job.dense_shards
    ]


def copied_files(job: Job) -> dict[str, bytes]:
    """The dense model's tokenizer and similar files, which pruning leaves alone."""
    present = [name for name in SIDE_FILES if name in job.index.other_files]
    return {name: bytes(job.index.store.read(name)) for name in present}


def pruned_checkpoint(job: Job) -> OverlayStore:
    """The assembled checkpoint as a store: shards in the workspace, small files in memory."""
    shards = pruned_shards(job)
    contents = side_files(job.spec.pruning.layout, job.index.config, job.pruned_config)
    contents |= copied_files(job)
    if len(shards) > 1:
        contents[SHARD_INDEX] = index_json(shards)
    paths = {
        shard.file_name: job.workspace.file(f"assemble.{number}", SHARD_FILE)
        for number, shard in enumerate(shards)
    }
    return OverlayStore(contents, paths)
