"""`block_configs.s`: write one file of a checkpoint of model type nemotron-nas.

Exporting cuts, pads and copies: whichever machine does it, the bytes are the same.
"""

from __future__ import annotations

from strucprune_core.checkpoint.writer import write_shard
from strucprune_core.export.block_configs import padded
from strucprune_core.export.padded_source import PaddedSource
from strucprune_core.plan.graph import Unit
from strucprune_core.run.artifacts import BlockConfigs
from strucprune_core.run.context import Job
from strucprune_core.run.pruned_model import PrunedModel
from strucprune_core.run.result_files import block_shards
from strucprune_core.run.shard_pieces import pieces_from
from strucprune_core.run.workspace import Draft


def block_configs(job: Job, unit: Unit, draft: Draft) -> None:
    """Cut and pad the tensors of one file and write it."""
    model, shard = PrunedModel(job), block_shards(job)[unit.index]
    source = PaddedSource(model.source_of_files(), model.in_files, padded(model.in_files))
    write_shard(draft.path(BlockConfigs.written), shard, pieces_from(job, shard, source))
