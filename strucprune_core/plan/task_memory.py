"""How much the requests of tasks may take. No torch: planner and run share it."""

from __future__ import annotations

BATCH_BYTES = 4 << 30
"""Most bytes of hidden states, or of keys and values, of requests that pass the layers together."""

CONTEXT_TOKENS = 2048
"""Most tokens of a request; a longer one loses its beginning. The harness's own default."""
