"""Sizes of the pieces resident at a time. No torch: planner and execution share them.

Chosen large enough that matrix products run at full speed, and small next to a decoder layer.
"""

from __future__ import annotations

from dataclasses import dataclass

HOLDOUT_TOKENS = 4096
"""Held-out tokens kept to judge a layer by, however many there are."""

VERIFY_SEQUENCES, VERIFY_TOKENS = 2, 64
"""What the reload checks run through a checkpoint."""

MODEL_CHECK_LAYERS = 6
"""Layers of the dense model that its check runs at most."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a job is cut so that it fits a memory; `plan.pieces` chooses them.

    Attributes:
        micro_batch_tokens: Tokens pushed through a layer at a time: whole sequences, at least one.
        weight_rows: Rows of a layer's matrix resident at a time; None: a whole layer.
        vocabulary_rows: Rows of the embedding or LM head resident at a time.
        head_tokens: Tokens multiplied with a vocabulary tile at a time: a tile of logits is 32 MiB
            by default.
    """

    micro_batch_tokens: int = 4096
    weight_rows: int | None = None
    vocabulary_rows: int = 4096
    head_tokens: int = 2048
