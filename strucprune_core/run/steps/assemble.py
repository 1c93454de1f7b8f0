"""`assemble.s`: write one file of the pruned checkpoint.

Assembling only cuts and copies: whichever machine does it, the bytes are the same.
"""

from __future__ import annotations

from strucprune_core.checkpoint.writer import write_shard
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import Assemble
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.result_files import checkpoint_shards
from strucprune_core.run.shard_pieces import pieces_from
from strucprune_core.run.workspace import Draft


def assemble(job: Job, unit: Unit, draft: Draft) -> None:
    """Cut the tensors of one file and write it."""
    shard = checkpoint_shards(job)[unit.index]
    pieces = pieces_from(job, shard, PrunedModel(job).source_of_files())
    write_shard(draft.path(Assemble.written), shard, pieces)
