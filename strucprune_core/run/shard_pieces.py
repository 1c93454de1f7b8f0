"""The tensors of a file of weights in pieces, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from strucprune_core.checkpoint.reader import PIECE_BYTES
from strucprune_core.checkpoint.writer import PlannedTensor, Shard
from strucprune_core.models.streaming import WeightSource
from strucprune_core.models.tiles import Tiles
from strucprune_core.run.context import Job


def pieces_from(job: Job, shard: Shard, source: WeightSource) -> Callable[[str], Iterator[Tensor]]:
    """Gives the pieces of each tensor of a file, once, with safe points between them."""
    planned = {tensor.name: tensor for tensor in shard.tensors}
    done = next_tick = 0

    def pieces(name: str) -> Iterator[Tensor]:
        nonlocal done, next_tick
        for start, stop in _row_ranges(planned[name], job.tiles):
            if done >= next_tick:
                job.tick(done, shard.size_bytes)
                next_tick = done + PIECE_BYTES
            rows = source.rows(name, start, stop, dtype=None)
            done += rows.nbytes
            yield rows

    return pieces


def _row_ranges(tensor: PlannedTensor, tiles: Tiles) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) to be in memory together."""
    step = max(1, PIECE_BYTES * tensor.shape[0] // max(1, tensor.size_bytes))
    if tiles.weight_rows is not None:
        step = min(step, tiles.weight_rows)
    for start in range(0, tensor.shape[0], step):
        yield start, min(start + step, tensor.shape[0])
