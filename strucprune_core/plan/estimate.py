"""Sizes, memory and work of a job, from shapes alone. No torch. Memory is in `plan.memory`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.export import fp8
from strucprune_core.export.block_configs import padded
from strucprune_core.export.gguf_layout import plan_tensors
from strucprune_core.method.allocation.budget import nearest_removal
from strucprune_core.method.allocation.uniform import allocate_uniformly
from strucprune_core.method.linalg.transfers import Transferred
from strucprune_core.models.blocks import blocks_of, without_blocks
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.experts import (
    expert_parameters,
    experts_of,
    first_experts,
    removed_share,
    routing_of,
    without_experts,
)
from strucprune_core.models.precision import Precision
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name
from strucprune_core.plan.blocks import estimated_removal, removable_parameters
from strucprune_core.plan.deviations import (
    batch_warning,
    block_warning,
    drafting_warning,
    family_warning,
    quantised_warning,
    search_warning,
    sparsity_warning,
    tokenizer_warning,
    warnings_of_sizes,
)
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.memory.forward import FP32_BYTES
from strucprune_core.plan.memory.host import PROCESS_BYTES, host_terms
from strucprune_core.plan.pieces import Plan, plan_job
from strucprune_core.plan.precision import precisions, rounding_warning
from strucprune_core.plan.predicted_speed import alignment_warning, predicted_speed
from strucprune_core.plan.shared_budget import removable_parameters as shared_budget_whole
from strucprune_core.plan.shared_budget import shared_budget
from strucprune_core.plan.sites import (
    equal_widths,
    keeps_drafting,
    kept_experts,
    likely_experts,
    plan_sites,
    pruned_config,
    requested_sparsity,
)
from strucprune_core.plan.speed import over_budget, speed_warning, tensor_bytes
from strucprune_core.plan.task_memory import batch_tokens, task_tokens
from strucprune_core.plan.traffic import StoredWeights, phase_traffic
from strucprune_core.plan.work import active_weights, flops
from strucprune_core.report.document import Moved, PredictedSpeed, SizeSummary
from strucprune_core.spec import GGUF_EXPORTS, Export, JobSpec, PruningSpec


class SizeEstimate(BaseModel):
    """What one of several sizes will come to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity_reached: float
    parameters_after: int
    bytes_after: int
    export_bytes: dict[Export, int]


class Estimate(BaseModel):
    """What a job will need and produce, computed before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters_before: int
    parameters_after: int
    bytes_before: int = Field(description="Bytes of the dense model's safetensors files.")
    bytes_after: int = Field(description="Bytes of the pruned model's safetensors files.")
    export_bytes: dict[Export, int] = Field(
        description="Bytes of each export's weights; padding of per-layer widths may add to them."
    )
    host_peak_bytes: int = Field(description="Peak resident memory of the pruning process.")
    device_peak_bytes: int = Field(description="Peak memory on the accelerator, if one is used.")
    speed_bytes: int = Field(
        default=0,
        description="Of a job that measures speed: both models whole, on the accelerator if one is "
        "used, else beside host_peak_bytes. Not measured where limits do not allow it.",
    )
    step_bytes: dict[str, int] = Field(
        description="Peak bytes of tensors by step; on the CPU they are part of host_peak_bytes."
    )
    workspace_bytes: int = Field(description="Peak disk space of the workspace.")
    bytes_read: int = Field(description="Bytes of weights read from the model's files in all.")
    traffic: dict[str, Moved] = Field(description="What is read and copied, by phase.")
    flops: dict[str, int] = Field(description="Floating-point operations by phase.")
    pieces: dict[str, int | None] = Field(
        description="Tokens, rows, columns and experts that are resident at a time; null: all of a "
        "layer."
    )
    precision: dict[Literal["cpu", "cuda"], Precision] = Field(
        default_factory=dict,
        description="What the job computes in, on each kind of device that it may run on.",
    )
    sparsity_requested: float
    sparsity_reached: float = Field(
        description="The nearest that whole structures and `multiple_of` allow; where steps differ "
        "in size, the job may end one step off."
    )
    predicted_speed: PredictedSpeed | None = Field(
        default=None, description="Of a target `speedup`: by the device's table, at equal widths."
    )
    sizes: dict[str, SizeEstimate] = Field(
        default_factory=dict,
        description="Of a job of several sizes what each will come to; the figures above that are "
        "about a result are those of the first.",
    )
    warnings: list[str] = Field(description="Where the job will do something else than asked for.")


def size_of(config: ModelConfig, *, dtype_bytes: int) -> SizeSummary:
    """Size of a checkpoint.

    Args:
        config: The model.
        dtype_bytes: Bytes of one stored parameter.
    """
    shapes = expected_tensors(config)
    active = sum(active_weights(config, layer) for layer in range(config.layers))
    parameters = sum(math.prod(shape) for shape in shapes.values())
    cached = config.kv_cache_values_per_token
    return SizeSummary(
        parameters=parameters,
        bytes=parameters * dtype_bytes,
        ffn_channels=config.ffn_channels,
        query_heads=sum(block.query_heads for block in config.blocks),
        kv_heads=sum(block.kv_heads for block in config.blocks),
        experts=sum(
            0 if each is None else each.count
            for each in (experts_of(config, layer) for layer in range(config.layers))
        ),
        kv_cache_bytes_per_token=None if cached is None else cached * dtype_bytes,
        flops_per_token=2 * (active + config.vocab_size * config.embedding_size),
    )


def drafting_bytes(config: ModelConfig, index: CheckpointIndex) -> int:
    """Bytes of what drafts further tokens."""
    return sum(index.tensors[name].read_bytes for name, _ in config.drafting)


def estimate_job(spec: JobSpec, facts: ModelFacts) -> Estimate:
    """Estimate a job on an inspected model.

    Raises:
        InvalidSpec: the model's widths do not allow a sparsity.
    """
    sizes = spec.by_size()
    each = {size: _estimate_alone(alone, facts) for size, alone in sizes.items()}
    first = next(iter(each.values()))
    if not spec.pruning.sizes:
        return first
    config = facts.config
    shared = _shared_workspace_bytes(spec, config)
    plan = plan_job(spec, config)
    return first.model_copy(
        update={
            "workspace_bytes": shared + sum(one.workspace_bytes - shared for one in each.values()),
            "host_peak_bytes": max(one.host_peak_bytes for one in each.values()),
            "device_peak_bytes": max(one.device_peak_bytes for one in each.values()),
            **_traffic(spec, facts, plan),
            "flops": flops(spec, config, plan.panels),
            "sizes": {size: _of_size(one) for size, one in each.items()},
            "warnings": warnings_of_sizes({size: one.warnings for size, one in each.items()}),
        }
    )


def _traffic(spec: JobSpec, facts: ModelFacts, plan: Plan) -> dict[str, Any]:
    """The fields on traffic."""
    phases = planned_traffic(spec, facts, plan)
    return {"bytes_read": sum(moved.read_bytes for moved in phases.values()), "traffic": phases}


def planned_traffic(spec: JobSpec, facts: ModelFacts, plan: Plan) -> dict[str, Moved]:
    """What a job reads and copies, by phase."""
    stored = StoredWeights.of(facts)
    moved = phase_traffic(spec, facts.config, plan.tiles, plan.panels, stored)
    return {phase: as_moved(each) for phase, each in moved.items()}


def as_moved(moved: Transferred) -> Moved:
    """The same as part of a document."""
    return Moved(
        read_bytes=moved.read, to_device_bytes=moved.to_device, to_host_bytes=moved.to_host
    )


def _of_size(estimate: Estimate) -> SizeEstimate:
    return SizeEstimate(
        sparsity_reached=estimate.sparsity_reached,
        parameters_after=estimate.parameters_after,
        bytes_after=estimate.bytes_after,
        export_bytes=estimate.export_bytes,
    )


def _estimate_alone(spec: JobSpec, facts: ModelFacts) -> Estimate:
    """The estimate of a job of one size."""
    config, index = facts.config, facts.index
    drafting = drafting_bytes(config, index)
    parameters = facts.parameters
    removed_parameters, removed_bytes, reached = removed_by(spec.pruning, facts)
    requested = requested_sparsity(spec.pruning, config)
    bytes_after = index.read_bytes - removed_bytes
    if not keeps_drafting(spec.pruning, config):
        bytes_after -= drafting
    exports = {export: export_bytes(export, spec, facts) for export in spec.pruning.exports}
    plan = plan_job(spec, config)
    host = max(host_terms(spec, config).values())
    on_device = spec.runtime.on_gpu
    return Estimate(
        sparsity_requested=requested,
        sparsity_reached=reached,
        parameters_before=parameters,
        parameters_after=parameters - removed_parameters,
        bytes_before=index.total_bytes,
        bytes_after=bytes_after,
        export_bytes=exports,
        host_peak_bytes=PROCESS_BYTES + host + (0 if on_device else plan.device_peak_bytes),
        device_peak_bytes=plan.device_peak_bytes if on_device else 0,
        speed_bytes=_speed_bytes(spec, facts, bytes_after) if spec.measures_speed else 0,
        step_bytes=plan.device_terms,
        workspace_bytes=_workspace_bytes(spec, config, bytes_after + sum(exports.values()))
        + _gathered_bytes(spec, config, plan)
        + (index.read_bytes if spec.measures_speed else 0),
        **_traffic(spec, facts, plan),
        flops=flops(spec, config, plan.panels),
        pieces=_pieces(plan, config),
        precision=precisions(spec, facts),
        predicted_speed=predicted_speed(spec, facts),
        warnings=[
            *family_warning(spec.pruning, config),
            *drafting_warning(spec.pruning, config),
            *sparsity_warning(requested, reached),
            *search_warning(spec),
            *batch_warning(spec),
            *block_warning(spec.pruning, config),
            *alignment_warning(spec.pruning),
            *quantised_warning(spec, index),
            *rounding_warning(precisions(spec, facts).values(), facts),
            *tokenizer_warning(index.file_versions),
            *speed_warning(_speed_over_budget(spec, facts, bytes_after)),
        ],
    )


def _speed_bytes(spec: JobSpec, facts: ModelFacts, pruned_bytes: int) -> int:
    return tensor_bytes(spec, facts.config, facts.index.read_bytes, pruned_bytes)


def _speed_over_budget(spec: JobSpec, facts: ModelFacts, pruned_bytes: int) -> str | None:
    """Why a job's limits do not allow it to measure speed; None if they do, or it is not to."""
    if not spec.measures_speed:
        return None
    needed = _speed_bytes(spec, facts, pruned_bytes)
    return over_budget(spec, needed, on_device=spec.runtime.on_gpu)


def _pieces(plan: Plan, config: ModelConfig) -> dict[str, int | None]:
    widest = max(max(block.ffn_widths, default=0) for block in config.blocks)
    tiles = asdict(plan.tiles)
    experts = 1 if tiles.pop("expert_by_expert") else None
    del tiles["operand_bytes"]  # `precision` says it.
    return {**tiles, "experts": experts, "solver_columns": min(plan.panels.panel, widest)}


def removed_by(pruning: PruningSpec, facts: ModelFacts) -> tuple[int, int, float]:
    """Parameters and bytes that are removed, and the share of what may be."""
    config, index = facts.config, facts.index
    if pruning.removes_experts_alone:
        return _removed_experts(pruning, facts)
    gone, reached = _removed_parameters(pruning, config)
    stored = index.tensors[next(iter(_removable_tensors(pruning, config)))]
    return gone, gone * DTYPE_BYTES[stored.dtype], reached


def _removable_tensors(pruning: PruningSpec, config: ModelConfig) -> Iterator[str]:
    """Names of matrices of which something goes."""
    for place in plan_sites(config, pruning):
        yield tensor_name(config, place.layer, place.site.output.role)
    for block in blocks_of(config, pruning.structures):
        left = layer_tensors(without_blocks(config, [block]), block.layer)
        for role, shape in layer_tensors(config, block.layer).items():
            if role not in left and len(shape) > 1:
                yield tensor_name(config, block.layer, role)


def _removed_experts(pruning: PruningSpec, facts: ModelFacts) -> tuple[int, int, float]:
    """The same of experts: how many stay of each layer, or of all of them, is known."""
    config, tensors = facts.config, facts.index.tensors
    equally = pruning.layout == "uniform"
    if equally:
        counts = [kept_experts(pruning, config)] * config.layers
    else:
        counts = likely_experts(pruning, config)
    kept = first_experts(config, counts)
    pruned = without_experts(config, kept, equally=equally)
    left = expected_tensors(pruned)
    gone = {
        name: math.prod(shape) - math.prod(left.get(name, (0,)))
        for name, shape in expected_tensors(config).items()
    }
    size = sum(number * DTYPE_BYTES[tensors[name].dtype] for name, number in gone.items())
    return sum(gone.values()), size, removed_share(config, kept)


def _removed_parameters(pruning: PruningSpec, config: ModelConfig) -> tuple[int, float]:
    """Parameters that are removed, and their share of those that may be."""
    if pruning.removes_blocks:
        gone = estimated_removal(config, pruning)
        return gone, gone / removable_parameters(config, pruning)
    if pruning.removes_experts:
        gone = shared_budget(config, pruning)
        return gone, gone / shared_budget_whole(config, pruning)
    planned = plan_sites(config, pruning)
    widths = [place.site.structures for place in planned]
    parameters = [place.site.parameters for place in planned]
    rules = [place.rule for place in planned]
    total = sum(width * each for width, each in zip(widths, parameters, strict=True))
    if pruning.allocation != "uniform":
        gone = nearest_removal(pruning.asked_sparsity, widths, parameters, rules)
        return gone, gone / total
    kept = allocate_uniformly(widths, pruning.asked_sparsity, rules).widths
    gone = sum(
        (width - left) * each for width, left, each in zip(widths, kept, parameters, strict=True)
    )
    return gone, gone / total


def export_bytes(export: Export, spec: JobSpec, facts: ModelFacts) -> int:
    """Bytes of an export if all layers lose the same share; of blocks, as if all had one size."""
    config, pruning = facts.config, spec.pruning
    if pruning.removes_blocks:
        gone, _ = _removed_parameters(pruning, config)
        whole = sum(math.prod(shape) for shape in expected_tensors(config).values())
        return round(bytes_as(export, config, facts) * (1.0 - gone / whole))
    planned = plan_sites(config, pruning)
    kept = equal_widths(planned, pruning.asked_sparsity)
    return bytes_as(export, pruned_config(config, pruning, planned, kept), facts)


def bytes_as(export: Export, config: ModelConfig, facts: ModelFacts) -> int:
    """Bytes of a model in the form of an export."""

    def stored(name: str) -> str:
        return facts.index.tensors[name].dtype

    if export in GGUF_EXPORTS:
        planned = plan_tensors(config, stored, quantised=export == "gguf_q8_0")
        return sum(tensor.size_bytes for tensor in planned)
    if export == "fp8":
        return _bytes_in_fp8(config, stored)
    shapes = expected_tensors(padded(config))
    return sum(math.prod(shape) * DTYPE_BYTES[stored(name)] for name, shape in shapes.items())


def _bytes_in_fp8(config: ModelConfig, stored: Callable[[str], str]) -> int:
    matrices = fp8.quantised_matrices(config)
    return sum(
        math.prod(shape)
        * DTYPE_BYTES[fp8.stored_dtype(name, matrices, stored(fp8.matrix_of(name, matrices)))]
        for name, shape in fp8.with_factors(expected_tensors(config), matrices).items()
    )


def _workspace_bytes(spec: JobSpec, config: ModelConfig, result_bytes: int) -> int:
    """Disk space of the workspace; `result_bytes` is the pruned checkpoint and its exports."""
    # Solved layers, which are kept to resume from until the shards are assembled.
    solved = sum(_columns(spec, config)) * config.hidden_size * FP32_BYTES
    trained = _training_bytes(spec, config) + _repair_bytes(spec, config)
    return _shared_workspace_bytes(spec, config) + solved + trained + result_bytes


def _shared_workspace_bytes(spec: JobSpec, config: ModelConfig) -> int:
    """The part that the sizes of a job share: hidden states and statistics."""
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    streams = 2 * tokens * config.hidden_size * FP32_BYTES  # A layer's inputs and outputs.
    # The hidden states of a batch of requests, and those that are scored.
    requests = min(task_tokens(spec), batch_tokens(config.hidden_size))
    streams += 2 * requests * config.hidden_size * FP32_BYTES
    return streams + sum(width * width for width in _columns(spec, config)) * FP32_BYTES


def _columns(spec: JobSpec, config: ModelConfig) -> list[int]:
    """Input columns of each site's matrix."""
    sites = [place.site for place in plan_sites(config, spec.pruning)]
    return [site.width for site in sites]


def _gathered_bytes(spec: JobSpec, config: ModelConfig, plan: Plan) -> int:
    """What experts that are read one at a time are given and give, of all tokens of a pass."""
    if not plan.tiles.expert_by_expert:
        return 0
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    if spec.evaluation is not None:
        tokens = max(tokens, spec.evaluation.sequences * spec.evaluation.sequence_length)
    # Their inputs and sums, and for each choice its number (int64) and its weight.
    return FP32_BYTES * tokens * (2 * config.hidden_size + 3 * routing_of(config).chosen)


def _repair_bytes(spec: JobSpec, config: ModelConfig) -> int:
    """Both streams before and after a layer, what its experts are given and give, and the result.

    Down matrices are at most half of the experts.
    """
    if not spec.pruning.expert_repair:
        return 0
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    experts = sum(
        expert_parameters(config, layer) * has.count
        for layer in range(config.layers)
        if (has := experts_of(config, layer)) is not None
    )
    return FP32_BYTES * (8 * tokens * config.hidden_size + experts // 2)


def _training_bytes(spec: JobSpec, config: ModelConfig) -> int:
    """Recovery keeps streams of hidden states, distillation also matrices and two moments."""
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    state = tokens * config.hidden_size * FP32_BYTES
    needed = 0
    if spec.pruning.recover is not None:
        # Dense and pruned stream, before and after a layer.
        needed += 4 * state if spec.pruning.recover.mode == "sequential" else 2 * state
    if spec.pruning.distill is not None:
        layers = sum(
            math.prod(shape)
            for number in range(config.layers)
            for shape in layer_tensors(config, number).values()
        )
        # The results of the unit before and of this one, and the dense model's last states.
        needed += 2 * 3 * layers * FP32_BYTES + state
    return needed
