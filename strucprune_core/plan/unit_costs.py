"""Cost of each unit, so that progress moves at an even pace. No torch.

A cost is the unit's operations (`work`), raised for those that run slower than a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from strucprune_core.method.linalg.panels import Panels
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.work import unit_flops
from strucprune_core.spec import JobSpec

# A fixed charge per unit for reading, writing and bookkeeping.
OVERHEAD_FLOPS = 1e9
# How much slower these run than a pass through the model (seen on one core, at 1,536 channels: 2.4
# and 1.8). Both compute in float64, and the updates of a damage curve are small.
# Tokens that are written one by one read all weights each.
SLOWDOWN = {"curves": 2.5, "solves": 2.0, "speed": 8.0}
# Reading a layer's weights takes as long as computing on this number of tokens.
READING_TOKENS = 64


def unit_costs(
    units: Iterable[Unit], spec: JobSpec, config: ModelConfig, panels: Panels
) -> dict[str, float]:
    """Cost of units by name, in operations of a large matrix product."""
    slowdown = {
        **SLOWDOWN,
        "writing": max(1.0, READING_TOKENS / spec.calibration.samples),
        "samples": READING_TOKENS / max(1, len(spec.sampled_prompts)),
    }
    units = list(units)
    parameters = sum(math.prod(shape) for shape in expected_tensors(config).values())
    reading = {
        unit.name: 2 * READING_TOKENS * parameters for unit in units if unit.kind == "weights"
    }
    return {
        name: OVERHEAD_FLOPS
        + reading.get(name, 0)
        + sum(slowdown.get(purpose, 1.0) * count for purpose, count in purposes.items())
        for name, purposes in unit_flops(units, spec, config, panels).items()
    }
