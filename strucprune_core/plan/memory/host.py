"""Host memory of a job. No torch.

Only anonymous memory counts. Pages that map a file (activations, matrices and solutions in scratch)
do not, since the kernel may drop them at any time.
"""

from __future__ import annotations

from math import prod

from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan.memory.forward import FP32_BYTES
from strucprune_core.spec import GGUF_EXPORTS, QUANTISED_EXPORTS, JobSpec

FP16_BYTES = 2
# Anonymous memory of a process that imported torch and parsed a tokenizer, before any weight.
PROCESS_BYTES = 350 * 10**6
# Pieces of a tensor that is being read: as stored, as converted, and the copy that is checked.
READING_BYTES = 3 * 32 * 2**20
# What converting some rows to 8 bits holds beside them: a few copies of 2^20 numbers in float32.
CONVERTING_BYTES = 32 * 2**20
# What an upload holds in addition to the computation (seen: 12 MB, for a file in ten parts).
STORING_BYTES = 16 * 2**20
# The GGUF reader's objects for a token and its share of the merges (seen: 1.2 kB with one merge per
# token; Llama 3 has two).
GGUF_TOKEN_BYTES = 2000
# lm-evaluation-harness and the libraries that it imports, with the documents of a task.
HARNESS_BYTES = 300 * 10**6


def host_terms(spec: JobSpec, config: ModelConfig) -> dict[str, int]:
    """Anonymous bytes of the process, without those on the device, by step."""
    terms = {"reading": READING_BYTES}
    if spec.pruning.exports:
        # The largest is most often the embedding.
        largest = max(prod(shape) for shape in expected_tensors(config).values())
        # A tensor as it is stored, rounded to 16 bits, and read back from the file to be compared.
        terms["exports"] = largest * (FP32_BYTES + 2 * FP16_BYTES)
        if set(QUANTISED_EXPORTS) & set(spec.pruning.exports):
            # Quantised, and read again twice, in float32.
            terms["exports"] = largest * (3 * FP32_BYTES + FP16_BYTES) + CONVERTING_BYTES
        if set(GGUF_EXPORTS) & set(spec.pruning.exports):
            terms["exports"] += config.vocab_size * GGUF_TOKEN_BYTES
    if spec.judges_by_tasks:
        terms["tasks"] = HARNESS_BYTES + READING_BYTES
    return {step: size + STORING_BYTES for step, size in terms.items()}
