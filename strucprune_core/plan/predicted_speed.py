"""How fast a job's result will be by the table of a device. No torch.

Before a job runs, it is not known how layers will share the budget. Then all count as if they lost
the same share, and of equal blocks, as if the first ones went. The report predicts once more, from
the widths that the result has.
"""

from __future__ import annotations

from strucprune_core.errors import InvalidSpec
from strucprune_core.method.allocation.blocks import steps_to_budget
from strucprune_core.models.blocks import block_parameters, without_blocks
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.blocks import block_budget, candidates
from strucprune_core.plan.device_table import DeviceTable, shipped_table
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.latency import pass_model
from strucprune_core.plan.sites import equal_widths, plan_sites, pruned_config
from strucprune_core.report.document import PredictedSpeed
from strucprune_core.spec import JobSpec, PruningSpec, TargetSpec

# Rows of a matrix whose length is a multiple of this many numbers are read fast everywhere.
ALIGNED_WIDTH = 16
# A result that is slower than asked for by more than this is warned of.
SPEED_TOLERANCE = 0.01
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def predicted_speed(
    spec: JobSpec, facts: ModelFacts, pruned: ModelConfig | None = None
) -> PredictedSpeed | None:
    """What a job's result takes on the device that its target names; None for another target.

    Args:
        spec: The job, with a sparsity.
        facts: Its model.
        pruned: The result, once it is known.

    Raises:
        InvalidSpec: the table has no such pass, is too small or of another dtype; or the time of
            such a result is not known beforehand.
    """
    target = spec.pruning.target
    if target is None or target.speedup is None:
        return None
    table = table_of(target)
    _check_dtype(spec, facts, table)
    model = pass_model(table, target.of, target.batch_sequences)
    context = target.context_tokens if target.of == "decode" else 0
    dense = model.seconds(facts.config, context)
    left = likely_shape(facts.config, spec.pruning) if pruned is None else pruned
    seconds = model.seconds(left, context)
    return PredictedSpeed(
        asked=target.speedup,
        predicted=dense / seconds,
        of=target.of,
        dense_seconds=dense,
        pruned_seconds=seconds,
        sequences=target.batch_sequences,
        tokens=model.tokens,
        context_tokens=context,
        table=target.device or "own",
        table_sha256=table.sha256(),
        device=table.device,
        threads=table.threads,
        dtype=table.dtype,
        runtime=table.runtime,
        measured_on=table.measured_on,
    )


def table_of(target: TargetSpec) -> DeviceTable:
    """The table that a target names or brings.

    Raises:
        InvalidSpec: there is none of its name.
    """
    if target.device_table is not None:
        return target.device_table
    return shipped_table(target.device or "")


def likely_shape(config: ModelConfig, pruning: PruningSpec) -> ModelConfig:
    """The result of a job if all layers lose the same share.

    Raises:
        InvalidSpec: that is no guess: experts go, or several kinds of structures of which one is
            whole blocks.
    """
    if pruning.removes_experts:
        raise InvalidSpec(
            "how fast a model is with fewer experts is in no table",
            field="pruning.target.speedup",
            remedy="Use another target, or a sparsity.",
        )
    if pruning.removes_blocks:
        return _with_fewer_blocks(config, pruning)
    planned = plan_sites(config, pruning)
    kept = equal_widths(planned, pruning.asked_sparsity)
    return pruned_config(config, pruning, planned, kept)


def _with_fewer_blocks(config: ModelConfig, pruning: PruningSpec) -> ModelConfig:
    if len(pruning.structures) > 1:
        raise InvalidSpec(
            "how a budget is shared between blocks and other structures is not known before they "
            "are measured, and so is the speed",
            field="pruning.target.speedup",
            remedy="Remove one kind of blocks alone, or channels and heads without blocks; or "
            "use a sparsity.",
        )
    blocks = candidates(config, pruning)
    sizes = [block_parameters(config, block) for block in blocks]
    return without_blocks(config, blocks[: steps_to_budget(sizes, block_budget(config, pruning))])


def _check_dtype(spec: JobSpec, facts: ModelFacts, table: DeviceTable) -> None:
    stored = facts.index.tensors[facts.config.names.embedding].dtype
    dtype = spec.output.dtype or _STORED.get(stored, stored)
    if dtype != table.dtype:
        raise InvalidSpec(
            f"the device's table was measured in {table.dtype}, and the result is in {dtype}",
            field="pruning.target.device",
            remedy=f"Use a table of {dtype} (strucprune bench-device --dtype {dtype}), or "
            f"output.dtype {table.dtype}.",
        )


def alignment_warning(pruning: PruningSpec) -> list[str]:
    """Channels of any number: rows of matrices whose length is no multiple of a few numbers."""
    speedup = pruning.target is not None and pruning.target.speedup is not None
    if not speedup or "ffn_channels" not in pruning.structures:
        return []
    if pruning.multiple_of % ALIGNED_WIDTH == 0:
        return []
    return [
        f"pruning.target.speedup: times hold for widths that are multiples of {ALIGNED_WIDTH}; "
        "others may take longer, odd ones up to twice as long. Set pruning.multiple_of to "
        f"{2 * ALIGNED_WIDTH}."
    ]


def slower_warning(speed: PredictedSpeed | None) -> list[str]:
    """The result's own widths are slower than what was asked for."""
    if speed is None or speed.predicted >= (1 - SPEED_TOLERANCE) * speed.asked:
        return []
    return [
        f"pruning.target.speedup: {speed.asked:.4g} was asked for, and by the device's table the "
        f"result is {speed.predicted:.4g} times as fast. Ask for a little more if it must not be "
        "less."
    ]
