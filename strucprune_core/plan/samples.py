"""How much work samples are: continuations of prompts by both models. No torch.

How many tokens a prompt has is only known once it is tokenised, so that is guessed here. All
prompts are continued together. The weights are read once for what the shortest prompt has tokens
for, and once for each position after that (`evaluation.tasks.greedy`).
"""

from __future__ import annotations

import math

from strucprune_core.models.config import ModelConfig
from strucprune_core.spec import JobSpec

_CHARACTERS_PER_TOKEN = 4
# What a tokenizer adds to a text: a token that begins it, a leading space.
_EXTRA_TOKENS = 2


def _lengths(spec: JobSpec) -> list[int]:
    """About how many tokens each prompt has."""
    return [math.ceil(len(prompt) / _CHARACTERS_PER_TOKEN) for prompt in spec.sampled_prompts]


def sampled_tokens(spec: JobSpec) -> int:
    """About how many tokens pass each of the two models."""
    if spec.evaluation is None:
        return 0
    lengths = _lengths(spec)
    return sum(lengths) + len(lengths) * spec.evaluation.sample_tokens


def passes_per_model(spec: JobSpec, config: ModelConfig) -> int:
    """About how often the weights of each of the two models are read."""
    lengths = _lengths(spec)
    if not lengths or spec.evaluation is None:
        return 0
    # In transformers' modules the first tokens are not run together.
    at_once = min(lengths) if config.generic is None else 1
    return max(lengths) - at_once + spec.evaluation.sample_tokens


def most_tokens(spec: JobSpec) -> tuple[int, int]:
    """Most tokens that are run at once of each prompt, and most of a prompt with its continuation.

    No tokenizer makes more tokens than there are bytes.
    """
    assert spec.evaluation is not None  # noqa: S101 - asked for jobs with samples alone
    sizes = [len(prompt.encode()) + _EXTRA_TOKENS for prompt in spec.sampled_prompts]
    return min(sizes), max(sizes) + spec.evaluation.sample_tokens
