"""Sizes and memory of a job, from shapes alone. No torch.

Every term of the memory formula is a named line, so that it can be compared with a measurement and
corrected where it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.allocation.budget import parameters_to_remove
from strucprune_core.allocation.uniform import allocate_uniformly
from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.export.block_configs import padded
from strucprune_core.export.gguf_layout import plan_tensors
from strucprune_core.inspection import ModelFacts
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name
from strucprune_core.planning import plan_sites, pruned_config
from strucprune_core.report import SizeSummary
from strucprune_core.spec import Export, JobSpec, PruningSpec
from strucprune_core.tiling import Tiles

FP16_BYTES = 2
FP32_BYTES = 4
FP64_BYTES = 8
# The GGUF reader's objects for a token and its share of the merges (seen: 1.2 kB with one merge per
# token; Llama 3 has two).
GGUF_TOKEN_BYTES = 2000
# Anonymous memory of a process that imported torch and parsed a tokenizer, before any weight.
PROCESS_BYTES = 350 * 10**6
# float64 matrices of f x f that live at once while a damage curve is drawn: the damped Gram, its
# factor, H^-1, and the copies made when removed channels are dropped.
CURVE_MATRICES = 5
# Copies of a micro-batch's activations while a layer is run back.
GRAPH_ACTIVATIONS = 3
# Tiles of logits that live at once: the logits, their exponentials, and a reference's logits.
LOGITS_TILES = 3


class Estimate(BaseModel):
    """What a job will need and give, before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters_before: int
    parameters_after: int
    bytes_before: int = Field(description="Bytes of the dense model's safetensors files.")
    bytes_after: int = Field(description="Bytes of the pruned model's safetensors files.")
    export_bytes: dict[Export, int] = Field(
        description="Bytes of each export's weights; per-layer widths may be filled up to more."
    )
    host_peak_bytes: int = Field(description="Peak resident memory of the pruning process.")
    device_peak_bytes: int = Field(description="Peak memory on the accelerator, if one is used.")
    workspace_bytes: int = Field(description="Peak disk space of the workspace.")
    calibration_flops: int = Field(description="Floating-point operations of the dense pass.")


def size_of(config: ModelConfig, *, dtype_bytes: int) -> SizeSummary:
    """Size of a checkpoint.

    Args:
        config: The model.
        dtype_bytes: Bytes of one stored parameter.
    """
    shapes = expected_tensors(config)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return SizeSummary(
        parameters=parameters,
        bytes=parameters * dtype_bytes,
        ffn_channels=config.ffn_channels,
        query_heads=sum(block.query_heads for block in config.blocks),
        kv_heads=sum(block.kv_heads for block in config.blocks),
        kv_cache_bytes_per_token=config.kv_cache_values_per_token * dtype_bytes,
        flops_per_token=2 * (_active_weights(config) + config.vocab_size * config.embedding_size),
    )


def estimate_job(spec: JobSpec, facts: ModelFacts) -> Estimate:
    """Estimate a job on an inspected model.

    Raises:
        InvalidSpec: the model's widths do not allow the sparsity.
    """
    config, index = facts.config, facts.index
    parameters = sum(index.tensors[name].parameters for name in expected_tensors(config))
    removed_parameters = _parameters_removed(spec.pruning, config)
    down = config.blocks[0].names.down.format(0)
    stored = index.tensors[tensor_name(config, 0, f"{down}.weight")]
    bytes_after = index.total_bytes - removed_parameters * DTYPE_BYTES[stored.dtype]
    exports = {export: _export_bytes(export, spec, facts) for export in spec.pruning.exports}
    memory = memory_terms(spec, config)
    solve = max(memory.values())
    on_device = spec.runtime.device == "cuda"
    return Estimate(
        parameters_before=parameters,
        parameters_after=parameters - removed_parameters,
        bytes_before=index.total_bytes,
        bytes_after=bytes_after,
        export_bytes=exports,
        host_peak_bytes=PROCESS_BYTES + (memory["decoder_layer"] if on_device else solve),
        device_peak_bytes=solve if on_device else 0,
        workspace_bytes=_workspace_bytes(spec, config, bytes_after + sum(exports.values())),
        calibration_flops=_calibration_flops(spec, config),
    )


def memory_terms(spec: JobSpec, config: ModelConfig) -> dict[str, int]:
    """Bytes beside the bare process, by step; the steps follow one another.

    d hidden size, f input columns of the widest site.
    """
    d = config.hidden_size
    sites = [site.site for site in plan_sites(config, spec.pruning)]
    f = max(site.structures * site.columns for site in sites)
    tokens = _micro_batch_tokens(spec)
    layer = FP32_BYTES * max(
        sum(math.prod(shape) for shape in layer_tensors(config, number).values())
        for number in range(config.layers)
    )
    widest = max(max(block.ffn_widths) for block in config.blocks)
    # Residual, normalised input, queries, keys, values, attended, output and the copy on the host;
    # gate, its activation, up and their product.
    activations = tokens * (8 * d + 4 * widest) * FP32_BYTES
    grams = _largest_layer(config, spec, lambda width: width * width)
    scaled = _largest_layer(config, spec, lambda width: tokens * width)
    tiles = Tiles()
    tile_rows = min(tiles.vocabulary_rows, config.vocab_size)
    vocabulary = config.vocab_size * d
    # A tensor as it is stored, rounded to 16 bits, and read back from the file to be compared.
    exported = vocabulary * (FP32_BYTES + 2 * FP16_BYTES) if spec.pruning.exports else 0
    if "gguf" in spec.pruning.exports:
        exported += config.vocab_size * GGUF_TOKEN_BYTES
    logits = min(tokens, tiles.head_tokens) * tile_rows * FP32_BYTES
    terms = {
        "decoder_layer": layer,
        # One layer over a micro-batch.
        "forward": layer + activations,
        # The same, every G of the layer, and the activations scaled by the token weights.
        "capture": layer + activations + (grams + scaled) * FP32_BYTES,
        # G in float32, the float64 matrices, and W in both.
        "damage_curve": f * f * (FP32_BYTES + CURVE_MATRICES * FP64_BYTES)
        + d * f * (FP32_BYTES + 3 * FP64_BYTES),
        # G in float32, its kept columns, the damped Gram and its factor.
        "reconstruction": f * f * (FP32_BYTES + 4 * FP64_BYTES) + d * f * 4 * FP64_BYTES,
        # The largest tensor, and the float32 copy of a piece of it that is checked to be finite.
        "assembly": vocabulary * FP32_BYTES + 2**22 * FP32_BYTES,
        # The same of exports.
        "exports": exported,
        # A tile of the LM head, its logits, and the hidden states they come from.
        "lm_head": tile_rows * d * FP32_BYTES + LOGITS_TILES * logits + 3 * tokens * d * FP32_BYTES,
    }
    if spec.pruning.recover is not None:
        # The dense and the pruned layer, trained matrices, gradients, two moments.
        terms["recovery"] = 6 * layer + activations
    if spec.pruning.distill is not None:
        # Matrices, gradients of a micro-batch and of all, two moments; activations that the graph
        # keeps for the way back, and their gradients.
        terms["distillation"] = 5 * layer + GRAPH_ACTIVATIONS * activations
    return terms


def _micro_batch_tokens(spec: JobSpec) -> int:
    """Tokens pushed through a layer at a time: whole sequences, at least one."""
    longest = spec.calibration.sequence_length
    if spec.evaluation is not None:
        longest = max(longest, spec.evaluation.sequence_length)
    return max(spec.runtime.micro_batch_tokens, longest)


def _parameters_removed(pruning: PruningSpec, config: ModelConfig) -> int:
    """Parameters that go. For rules with a price the budget; rounding may remove a little more."""
    planned = plan_sites(config, pruning)
    widths = [place.site.structures for place in planned]
    parameters = [place.site.parameters for place in planned]
    if pruning.allocation != "uniform":
        return parameters_to_remove(pruning.sparsity, widths, parameters)
    rules = [place.rule for place in planned]
    kept = allocate_uniformly(widths, pruning.sparsity, rules).widths
    return sum(
        (width - left) * each for width, left, each in zip(widths, kept, parameters, strict=True)
    )


def _export_bytes(export: Export, spec: JobSpec, facts: ModelFacts) -> int:
    """Bytes of an export if all layers lose the same share."""
    config, pruning = facts.config, spec.pruning
    planned = plan_sites(config, pruning)
    widths = [place.site.structures for place in planned]
    kept = allocate_uniformly(widths, pruning.sparsity, [place.rule for place in planned]).widths
    pruned = pruned_config(config, pruning, planned, list(kept))

    def stored(name: str) -> str:
        return facts.index.tensors[name].dtype

    if export == "gguf":
        return sum(tensor.size_bytes for tensor in plan_tensors(pruned, stored))
    shapes = expected_tensors(padded(pruned))
    return sum(math.prod(shape) * DTYPE_BYTES[stored(name)] for name, shape in shapes.items())


def _workspace_bytes(spec: JobSpec, config: ModelConfig, result_bytes: int) -> int:
    """Disk space: nothing here grows with more than the model's own size and the tokens.

    `result_bytes` is the pruned checkpoint and its exports.
    """
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    streams = 2 * tokens * config.hidden_size * FP32_BYTES  # a layer's inputs and outputs
    sites = [place.site for place in plan_sites(config, spec.pruning)]
    columns = [site.structures * site.columns for site in sites]
    grams = sum(width * width for width in columns) * FP32_BYTES
    # Solved layers, kept to resume from, until the shards are assembled from them.
    solved = sum(columns) * config.hidden_size * FP32_BYTES
    return streams + grams + solved + _training_bytes(spec, config) + result_bytes


def _training_bytes(spec: JobSpec, config: ModelConfig) -> int:
    """What recovery and distillation keep: streams of hidden states; matrices and two moments."""
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
        # What the unit before left and what this one writes; the dense model's last states.
        needed += 2 * 3 * layers * FP32_BYTES + state
    return needed


def _calibration_flops(spec: JobSpec, config: ModelConfig) -> int:
    """The dense pass (without LM head) and the Gram of each site, 2 n m^2."""
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    sites = [place.site for place in plan_sites(config, spec.pruning)]
    grams = sum(2 * (site.structures * site.columns) ** 2 for site in sites)
    return tokens * (2 * _active_weights(config) + grams)


def _largest_layer(config: ModelConfig, spec: JobSpec, cost: Callable[[int], int]) -> int:
    """The largest sum of a cost, a function of input columns, over one layer's sites."""
    totals = [0] * config.layers
    for place in plan_sites(config, spec.pruning):
        totals[place.layer] += cost(place.site.structures * place.site.columns)
    return max(totals)


def _active_weights(config: ModelConfig) -> int:
    """Weights of the layers' matrices that one token meets (norms and biases multiply nothing)."""
    total = 0
    for layer, block in enumerate(config.blocks):
        shapes = layer_tensors(config, layer)
        matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
        if block.names.router is not None:  # Of the experts a token meets only a few.
            gated = 2 if block.names.gate is not None else 1
            experts = sum(block.ffn_widths) * (gated + 1) * config.hidden_size
            share = config.experts_per_token / len(block.ffn_widths)
            matrices += round(experts * share) - experts
        total += matrices
    return total
