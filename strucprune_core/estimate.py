"""Sizes and memory of a job, from shapes alone. No torch.

Every term of the memory formula is a named line, so that it can be compared with a measurement and
corrected where it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.allocation.budget import WidthRule, channels_to_remove
from strucprune_core.allocation.uniform import allocate_uniformly
from strucprune_core.checkpoint.header import DTYPE_BYTES
from strucprune_core.inspection import ModelFacts
from strucprune_core.models.config import ModelConfig, expected_tensors, layer_tensors
from strucprune_core.report import SizeSummary
from strucprune_core.spec import JobSpec, PruningSpec
from strucprune_core.tiling import HEAD_CHUNK_TOKENS, VOCAB_TILE_ROWS

FP32_BYTES = 4
FP64_BYTES = 8
# Anonymous memory of a process that imported torch and parsed a tokenizer, before any weight.
PROCESS_BYTES = 350 * 10**6
# float64 matrices of f x f that live at once while a damage curve is drawn: the damped Gram, its
# factor, H^-1, and the copies made when removed channels are dropped.
CURVE_MATRICES = 5
# Tiles of logits that live at once: the logits, their exponentials, and a reference's logits.
LOGITS_TILES = 3


class Estimate(BaseModel):
    """What a job will need and give, before it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters_before: int
    parameters_after: int
    bytes_before: int = Field(description="Bytes of the dense model's safetensors files.")
    bytes_after: int = Field(description="Bytes of the pruned model's safetensors files.")
    host_peak_bytes: int = Field(description="Peak resident memory of the pruning process.")
    device_peak_bytes: int = Field(description="Peak memory on the accelerator, if one is used.")
    workspace_bytes: int = Field(description="Peak disk space of the workspace.")
    calibration_flops: int = Field(description="Floating-point operations of the dense pass.")


def size_of(
    config: ModelConfig, widths: Sequence[int] | None = None, *, dtype_bytes: int
) -> SizeSummary:
    """Size of a checkpoint.

    Args:
        config: The model.
        widths: FFN width of each layer; None keeps those of the config.
        dtype_bytes: Bytes of one stored parameter.
    """
    sized = config if widths is None else replace(config, intermediate_sizes=tuple(widths))
    shapes = expected_tensors(sized)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    return SizeSummary(
        parameters=parameters,
        bytes=parameters * dtype_bytes,
        ffn_channels=sized.ffn_channels,
        flops_per_token=2 * (_body_weights(sized) + sized.vocab_size * sized.hidden_size),
    )


def estimate_job(spec: JobSpec, facts: ModelFacts) -> Estimate:
    """Estimate a job on an inspected model.

    Raises:
        InvalidSpec: the model's widths do not allow the sparsity.
    """
    config, index = facts.config, facts.index
    removed = _channels_removed(spec.pruning, config)
    parameters = sum(index.tensors[name].parameters for name in expected_tensors(config))
    removed_parameters = removed * config.parameters_per_channel
    down = index.tensors["model.layers.0.mlp.down_proj.weight"]
    bytes_after = index.total_bytes - removed_parameters * DTYPE_BYTES[down.dtype]
    memory = memory_terms(spec, config)
    solve = max(memory.values())
    on_device = spec.runtime.device == "cuda"
    return Estimate(
        parameters_before=parameters,
        parameters_after=parameters - removed_parameters,
        bytes_before=index.total_bytes,
        bytes_after=bytes_after,
        host_peak_bytes=PROCESS_BYTES + (memory["decoder_layer"] if on_device else solve),
        device_peak_bytes=solve if on_device else 0,
        workspace_bytes=_workspace_bytes(spec, config, bytes_after),
        calibration_flops=_calibration_flops(spec, config),
    )


def memory_terms(spec: JobSpec, config: ModelConfig) -> dict[str, int]:
    """Bytes beside the bare process, by step; the steps follow one another.

    d hidden size, f the widest FFN, t tokens of one micro-batch.
    """
    d, f = config.hidden_size, max(config.intermediate_sizes)
    tokens = _micro_batch_tokens(spec)
    widest = max(range(config.layers), key=lambda layer: config.intermediate_sizes[layer])
    parameters = sum(math.prod(shape) for shape in layer_tensors(config, widest).values())
    layer = parameters * FP32_BYTES
    # Residual, normalised input, queries, keys, values, attended, output and the copy on the host;
    # gate, its activation, up and their product.
    activations = tokens * (8 * d + 4 * f) * FP32_BYTES
    tile_rows = min(VOCAB_TILE_ROWS, config.vocab_size)
    logits = min(tokens, HEAD_CHUNK_TOKENS) * tile_rows * FP32_BYTES
    return {
        "decoder_layer": layer,
        # One layer over a micro-batch.
        "forward": layer + activations,
        # The same, G, and the activations scaled by the token weights.
        "capture": layer + activations + f * f * FP32_BYTES + tokens * f * FP32_BYTES,
        # G in float32, the float64 matrices, and W in both.
        "damage_curve": f * f * (FP32_BYTES + CURVE_MATRICES * FP64_BYTES)
        + d * f * (FP32_BYTES + 3 * FP64_BYTES),
        # G in float32, its kept columns, the damped Gram and its factor.
        "reconstruction": f * f * (FP32_BYTES + 4 * FP64_BYTES) + d * f * 4 * FP64_BYTES,
        # The largest tensor, and the float32 copy of a piece of it that is checked to be finite.
        "assembly": config.vocab_size * d * FP32_BYTES + 2**22 * FP32_BYTES,
        # A tile of the LM head, its logits, and the hidden states they come from.
        "lm_head": tile_rows * d * FP32_BYTES + LOGITS_TILES * logits + 3 * tokens * d * FP32_BYTES,
    }


def _micro_batch_tokens(spec: JobSpec) -> int:
    """Tokens pushed through a layer at a time: whole sequences, at least one."""
    longest = spec.calibration.sequence_length
    if spec.evaluation is not None:
        longest = max(longest, spec.evaluation.sequence_length)
    return max(spec.runtime.micro_batch_tokens, longest)


def _channels_removed(pruning: PruningSpec, config: ModelConfig) -> int:
    """Channels that go. For `threshold` the budget; rounding may remove a little more."""
    widths = list(config.intermediate_sizes)
    if pruning.allocation == "threshold":
        return channels_to_remove(pruning.sparsity, widths)
    rule = WidthRule(pruning.min_keep_fraction, pruning.multiple_of)
    return sum(widths) - sum(allocate_uniformly(widths, pruning.sparsity, rule).widths)


def _workspace_bytes(spec: JobSpec, config: ModelConfig, bytes_after: int) -> int:
    """Disk space: nothing here grows with more than the model's own size and the tokens."""
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    streams = 2 * tokens * config.hidden_size * FP32_BYTES  # a layer's inputs and outputs
    grams = sum(width * width for width in config.intermediate_sizes) * FP32_BYTES
    # Solved layers, kept to resume from, until the shards are assembled from them.
    solved = sum(width for width in config.intermediate_sizes) * config.hidden_size * FP32_BYTES
    return streams + grams + solved + bytes_after


def _calibration_flops(spec: JobSpec, config: ModelConfig) -> int:
    """The dense pass (without LM head) and the Gram of each layer, 2 n f^2."""
    tokens = spec.calibration.samples * spec.calibration.sequence_length
    grams = sum(2 * width * width for width in config.intermediate_sizes)
    return tokens * (2 * _body_weights(config) + grams)


def _body_weights(config: ModelConfig) -> int:
    """Weights of all matrices of the decoder layers (norms and biases multiply nothing)."""
    return sum(
        math.prod(shape)
        for layer in range(config.layers)
        for shape in layer_tensors(config, layer).values()
        if len(shape) == 2
    )
