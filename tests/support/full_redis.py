"""A Redis or Valkey that is full: its own limit, set below what it holds."""

from __future__ import annotations

import redis

# Less than an empty server takes.
_BYTES = 1000


def fill(client: redis.Redis) -> None:
    """Let the server refuse all writes that take memory, as a full one does."""
    client.config_set("maxmemory", _BYTES)


def mend(client: redis.Redis) -> None:
    """Give the server memory again."""
    client.config_set("maxmemory", 0)
