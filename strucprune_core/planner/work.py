"""What a job reads and computes. No torch."""

from __future__ import annotations

import math

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors, layer_tensors
from strucprune_core.planner.steps import KEPT_SHARE
from strucprune_core.planning import energy_of, plan_sites, probe_shape
from strucprune_core.solver.memory import curve_flops, gram_flops, ridge_flops
from strucprune_core.solver.panels import Panels
from strucprune_core.spec import JobSpec
from strucprune_core.units import probe_groups


def weights_read(spec: JobSpec, config: ModelConfig) -> int:
    """Parameters read from the model's files in the course of a job, a pass counted each time."""
    layers = [
        sum(math.prod(shape) for shape in layer_tensors(config, layer).values())
        for layer in range(config.layers)
    ]
    body = sum(layers)
    ends = sum(math.prod(shape) for shape in expected_tensors(config).values()) - body
    passes = 2.0  # Statistics, and assembly of the result.
    partial = 0
    pruning = spec.pruning
    if energy_of(pruning) == "kl_probe":
        # A group of layers sends its runs through all layers behind it.
        partial = sum(sum(layers[group.start :]) for group in probe_groups(config.layers))
    elif energy_of(pruning) == "gradient":
        passes += 1
    if spec.evaluation is not None:
        passes += 1
    passes += 1 if pruning.recover is not None else 0
    passes += 0 if pruning.distill is None else 2 * pruning.distill.steps
    return round(passes * (body + ends)) + partial


def flops(spec: JobSpec, config: ModelConfig, panels: Panels) -> dict[str, int]:
    """Floating-point operations by phase; a multiplication and an addition are two."""
    d, text = config.hidden_size, spec.calibration
    sites = [place.site for place in plan_sites(config, spec.pruning)]
    widths = [site.structures * site.columns for site in sites]
    tokens = text.samples * text.sequence_length
    layers = [2 * active_weights(config, layer) for layer in range(config.layers)]
    head = 2 * config.vocab_size * config.embedding_size
    found = {
        "calibration": tokens * sum(layers),
        "grams": sum(gram_flops(width, tokens) for width in widths),
        "curves": sum(sum(curve_flops(width, d, panels).values()) for width in widths),
        "solves": sum(_ridge(width, d) for width in widths),
    }
    if energy_of(spec.pruning) == "kl_probe":
        sequences, length = probe_shape(text)
        through = sum(sum(layers[layer:]) for layer in range(config.layers))
        through += config.layers * head
        found["probes"] = sequences * length * through + found["solves"]
    if spec.evaluation is not None:
        judged = spec.evaluation.sequences * spec.evaluation.sequence_length
        found["evaluation"] = 2 * judged * (sum(layers) + head)
    return found


def _ridge(width: int, hidden: int) -> int:
    return sum(ridge_flops(width, hidden, math.ceil(KEPT_SHARE * width)).values())


def active_weights(config: ModelConfig, layer: int) -> int:
    """Weights of a layer's matrices that one token meets (norms and biases multiply nothing)."""
    block = config.blocks[layer]
    shapes = layer_tensors(config, layer)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    if block.names.router is None:
        return matrices
    # Of the experts a token meets only a few.
    gated = 2 if block.names.gate is not None else 1
    experts = sum(block.ffn_widths) * (gated + 1) * config.hidden_size
    share = config.experts_per_token / len(block.ffn_widths)
    return matrices + round(experts * share) - experts
