"""Tiny jobs that run under limits, and a large one that is planned only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from strucprune_core.spec import JobSpec
from tests.core.jobs.tiny_job import tiny_spec

GIB = 2**30
SEVEN_BILLION: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


SHAPES: dict[str, dict[str, Any]] = {
    "wide_ffn": {"hidden": 128, "intermediate": 512, "heads": 4, "kv_heads": 2},
    "narrow_ffn": {"hidden": 256, "intermediate": 384, "heads": 8, "kv_heads": 8},
    "one_kv_head": {"hidden": 192, "intermediate": 512, "heads": 6, "kv_heads": 1},
    "square": {"hidden": 256, "intermediate": 256, "heads": 4, "kv_heads": 4},
    "widest": {"hidden": 64, "intermediate": 1024, "heads": 4, "kv_heads": 2},
    "large": {"hidden": 320, "intermediate": 896, "heads": 5, "kv_heads": 5},
}


def in_half_precision(model: Path) -> None:
    """Store a model in 16 bits: on the CPU float32 files are not copied but wrapped."""
    file = model / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)


def limited(model: Path, text: Path, output: Path, limit: int | None, **pruning: Any) -> JobSpec:
    return tiny_spec(
        model,
        text,
        output,
        pruning={"sparsity": 0.3, **pruning},
        calibration={"samples": 16, "sequence_length": 64},
        evaluation={"sequences": 4, "sequence_length": 64, "max_perplexity_ratio": 1e6},
        runtime={"micro_batch_tokens": 512, "device_memory_bytes": limit},
    )


def large_job(limit: int | None, **runtime: Any) -> JobSpec:
    return tiny_spec(
        Path("/model"),
        Path("/text"),
        Path("/out"),
        pruning={"sparsity": 0.3},
        calibration={"samples": 128, "sequence_length": 2048},
        evaluation={"sequences": 128, "sequence_length": 2048},
        runtime={"device": "cuda", "device_memory_bytes": limit, **runtime},
    )
