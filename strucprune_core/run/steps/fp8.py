"""`fp8.s`: write one file of the checkpoint in FP8.

Exporting cuts, quantises and copies: whichever machine does it, the bytes are the same.
"""

from __future__ import annotations

from strucprune_core.checkpoint.writer import write_shard
from strucprune_core.export.fp8 import quantised_matrices
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Fp8
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.result_files import fp8_shards
from strucprune_core.run.shard_pieces import pieces_from
from strucprune_core.run.workspace import Draft


def fp8(job: Job, unit: Unit, draft: Draft) -> None:
    """Cut and quantise the tensors of one file and write it."""
    from strucprune_core.export.fp8_source import Fp8Source

    model, shard = PrunedModel(job), fp8_shards(job)[unit.index]
    source = Fp8Source(model.source_of_files(), quantised_matrices(model.in_files))
    write_shard(draft.path(Fp8.written), shard, pieces_from(job, shard, source))
