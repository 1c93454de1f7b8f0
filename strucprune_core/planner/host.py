"""Host memory of a job, and what it reads. No torch.

Host memory is anonymous memory: pages that map a file (activations, matrices and solutions in
scratch) are not counted, since the kernel may drop them at any time.
"""

from __future__ import annotations

import math

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors, layer_tensors
from strucprune_core.planner.forward import FP32_BYTES
from strucprune_core.planning import energy_of
from strucprune_core.spec import JobSpec
from strucprune_core.units import probe_groups

FP16_BYTES = 2
# Anonymous memory of a process that imported torch and parsed a tokenizer, before any weight.
PROCESS_BYTES = 350 * 10**6
# Pieces of a tensor on their way: as stored, as converted, and the copy that is checked.
READING_BYTES = 3 * 32 * 2**20
# The GGUF reader's objects for a token and its share of the merges (seen: 1.2 kB with one merge per
# token; Llama 3 has two).
GGUF_TOKEN_BYTES = 2000


def host_terms(spec: JobSpec, config: ModelConfig) -> dict[str, int]:
    """Anonymous bytes of the process beside what is on the device, by step."""
    vocabulary = config.vocab_size * config.hidden_size
    terms = {"reading": READING_BYTES}
    if spec.pruning.exports:
        # A tensor as it is stored, rounded to 16 bits, and read back from the file to be compared.
        terms["exports"] = vocabulary * (FP32_BYTES + 2 * FP16_BYTES)
        if "gguf" in spec.pruning.exports:
            terms["exports"] += config.vocab_size * GGUF_TOKEN_BYTES
    return terms


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
