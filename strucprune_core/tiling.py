"""Sizes of the pieces resident at a time. No torch: planner and execution share them.

Chosen large enough that matrix products run at full speed, and small next to a decoder layer.
"""

from __future__ import annotations

HOLDOUT_TOKENS = 4096
"""Held-out tokens kept to judge a layer by, however many there are."""

VOCAB_TILE_ROWS = 4096
"""Rows of the embedding or LM head resident at a time."""

HEAD_CHUNK_TOKENS = 2048
"""Tokens multiplied with a vocabulary tile at a time: a tile of logits is 32 MiB."""
