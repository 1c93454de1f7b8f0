"""How much scratch and how many tokens the requests of tasks take. No torch: planner and run share it."""

from __future__ import annotations

BATCH_BYTES = 4 << 30
"""Most bytes of hidden states, or of keys and values, of the requests that pass the layers together."""

CONTEXT_TOKENS = 2048
"""Most tokens of a request; what is longer loses its beginning. The harness's own default."""
