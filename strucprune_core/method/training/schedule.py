"""The learning rate of a training, and the tokens of a step. No torch.

The rate rises linearly over the first 5 % of the steps, then follows a cosine down to 5 % of its
highest value (warm-up as in Goyal et al. 2017, cosine as in Loshchilov and Hutter 2017, no
restarts).
"""

from __future__ import annotations

import math

WARMUP_SHARE, FLOOR = 0.05, 0.05
RECOVERY_BATCH_TOKENS = 1024
"""Tokens of a step of recovery."""


def recovery_sequences(length: int) -> int:
    """Sequences of a step of recovery, where it takes whole ones; at least one."""
    return max(1, RECOVERY_BATCH_TOKENS // length)


def rate_factor(step: int, steps: int) -> float:
    """The rate at a step in [0, steps), relative to the highest: linear warm-up, then a cosine."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step + 1 - warmup) / max(1, steps - warmup)
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress))
