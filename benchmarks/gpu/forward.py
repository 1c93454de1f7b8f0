"""A pruning job's phases against one plain pass of transformers over the same tokens."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from benchmarks.gpu.jobs import Text, Units, job, make_model, run
from benchmarks.gpu.rates import wait_for
from benchmarks.gpu.record import Keep
from benchmarks.gpu.shapes import SMOLLM2, raw_of
from benchmarks.speed import WRITING, calibration_tokens

BAR = 3.0
"""Passes that statistics, curves, probes, allocation and solving may take together."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    raw: dict[str, Any] = field(default_factory=lambda: raw_of(SMOLLM2))
    text: Text = field(default_factory=lambda: Text(128, 2048))
    batch_sequences: int = 8
    rounds: int = 3
    phase_limit_seconds: float = 60.0


def measure(device: str, folder: Path, keep: Keep, settings: Settings = Settings()) -> None:
    """The passes first, since the job may be cut."""
    model = make_model(folder, settings.raw, settings.text, device)
    spec = job(model, folder / "job", settings.text, device)
    tokens = calibration_tokens(spec)
    passes = forward_seconds(model[0], tokens, device, settings)
    about = {
        "tokens": int(tokens.size),
        "forward_dtype": "bfloat16",
        "forward_seconds": passes,
        "bar": BAR,
    }
    keep(about)
    units = Units(lambda found: keep({**about, **found}))
    report = run(spec, folder / "job", units, settings.phase_limit_seconds)
    found = {**about, **units.found}
    if isinstance(report, str):
        keep({**found, "stopped": report})
        return
    pruning = sum(spent for phase, spent in units.seconds.items() if phase != WRITING)
    ratio = pruning / statistics.median(passes)
    keep({**found, "pruning_seconds": pruning, "passes": ratio, "within_bar": ratio <= BAR})


@torch.inference_mode()
def forward_seconds(
    path: Path, tokens: NDArray[np.int32], device: str, settings: Settings
) -> list[float]:
    """Seconds of each pass with logits, after one batch that warms the device up."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model = model.to(device).eval()
    starts = range(0, len(tokens), settings.batch_sequences)
    batches = [
        torch.from_numpy(tokens[start : start + settings.batch_sequences].astype(np.int64))
        for start in starts
    ]
    batches = [batch.to(device) for batch in batches]
    model(batches[0], use_cache=False)
    found = []
    for _ in range(settings.rounds):
        wait_for(device)
        began = time.perf_counter()
        for batch in batches:
            model(batch, use_cache=False)
        wait_for(device)
        found.append(time.perf_counter() - began)
    return found
