"""What measuring the speed of both models takes, and whether a job's budget allows it. No torch.

Each model is loaded whole, in a process of its own, and both stay loaded while they take turns. So
this takes far more memory than the rest of the job. Where a budget does not allow that, speed is
not measured, and validation says so.
"""

from __future__ import annotations

from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.memory.forward import FP32_BYTES
from strucprune_core.plan.memory.host import PROCESS_BYTES
from strucprune_core.spec import JobSpec

PROMPT_TOKENS, NEW_TOKENS = 256, 32
"""Tokens of the prompt, and tokens that are written after it: for short answers to short texts."""

ROUNDS = 5
"""In each, both models are measured once. One round before them is not recorded."""

# Memory of a process that imported torch and transformers, before any weight (seen: 420 MB).
RUNTIME_BYTES = 500 * 10**6


def shape(spec: JobSpec, config: ModelConfig) -> tuple[int, int]:
    """Tokens of the prompt, and tokens that are written after it: no more than there are."""
    new = max(1, min(NEW_TOKENS, config.max_position_embeddings // 4))
    room = config.max_position_embeddings - new
    return min(PROMPT_TOKENS, spec.calibration.sequence_length, room), new


def passed_tokens(spec: JobSpec, config: ModelConfig) -> int:
    """Tokens that pass each model."""
    return (ROUNDS + 1) * sum(shape(spec, config)) if spec.measures_speed else 0


def tensor_bytes(spec: JobSpec, config: ModelConfig, dense_bytes: int, pruned_bytes: int) -> int:
    """Both models' weights, keys and values, and the largest model's widest activations.

    Args:
        spec: The job.
        config: The dense model.
        dense_bytes: Bytes of its weights as they are read.
        pruned_bytes: Bytes of the pruned model's.
    """
    tokens, widest = sum(shape(spec, config)), config.hidden_size
    for block in config.blocks:
        widest = max(widest, *block.ffn_widths) if block.ffn_widths else widest
    cached = 2 * tokens * (config.kv_cache_values_per_token or 0) * FP32_BYTES
    running = FP32_BYTES * (8 * tokens * widest + 2 * config.vocab_size)
    return dense_bytes + pruned_bytes + cached + 2 * running


def over_budget(spec: JobSpec, needed_bytes: int, *, on_device: bool) -> str | None:
    """Why the job's own limits do not allow to measure; None if they do, or there are none.

    Args:
        spec: The job.
        needed_bytes: See `tensor_bytes`.
        on_device: Whether tensors are on an accelerator.
    """
    runtime = spec.runtime
    host = PROCESS_BYTES + 2 * RUNTIME_BYTES + (0 if on_device else needed_bytes)
    limits = (
        ("runtime.device_memory_bytes", runtime.device_memory_bytes, needed_bytes),
        ("runtime.host_memory_bytes", runtime.host_memory_bytes, host),
    )
    for name, limit, needed in limits:
        if limit is not None and needed > limit:
            return (
                f"both models whole, beside each other, take {needed:,} bytes, more than {name} "
                f"allows ({limit:,})"
            )
    return None


def speed_warning(reason: str | None) -> list[str]:
    """Says that speed is not measured, and why."""
    return [] if reason is None else [f"evaluation.speed: not measured: {reason}."]
