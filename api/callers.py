"""Finds the owner of an API key: in the environment, or in the state store, with a short cache."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from api.settings import ApiKey
from strucprune_core.access.key_store import KeyStore
from strucprune_core.access.keys import KeyRecord, Scope, hash_key, key_id

# Keys cached. Beyond that, those used longest ago are dropped.
KEYS_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        key_hmac: HMAC of the key, to check later whether it is still valid.
        key_id: The stored key's id; None for a key of the environment.
    """

    tenant: str
    scopes: frozenset[Scope]
    key_hmac: str = field(default="", repr=False, compare=False)
    key_id: str | None = field(default=None, compare=False)


class NotCached(Exception):
    """The cache does not hold the key: the state store must be asked."""


class Callers:
    """Identifies callers by their keys. Safe to share between threads.

    Args:
        fixed: Keys from the environment.
        stored: Keys that are made and revoked while the service runs.
        pepper: Secret that the hashes depend on.
        cache_seconds: How long an answer of the store is used. A revoked key is refused
            everywhere after this time.
        clock: Seconds, for the cache.
    """

    def __init__(
        self,
        fixed: tuple[ApiKey, ...],
        stored: KeyStore,
        pepper: str,
        cache_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = fixed
        self._stored = stored
        self._pepper = pepper
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, tuple[float, KeyRecord | None]] = OrderedDict()

    def authenticate(self, key: str, *, cached_only: bool = False) -> Principal | None:
        """The principal of a key, or None.

        Args:
            key: The key that the caller sent.
            cached_only: Do not ask the state store, which may take long.

        Raises:
            StorageError: the state store does not answer.
            NotCached: `cached_only`, and the cache does not hold the key.
        """
        digest, record_id = hash_key(key, self._pepper), key_id(key, self._pepper)
        return self._find(digest, record_id, cached_only=cached_only)

    def confirm(self, principal: Principal, *, cached_only: bool = False) -> bool:
        """Whether the caller's key is still valid: for answers that take long.

        Raises:
            StorageError: the state store does not answer.
            NotCached: `cached_only`, and the cache does not hold the key.
        """
        found = self._find(principal.key_hmac, principal.key_id, cached_only=cached_only)
        return found is not None and found == principal

    def _find(self, digest: str, record_id: str | None, *, cached_only: bool) -> Principal | None:
        now = datetime.now(UTC)
        found: ApiKey | None = None
        # Compares all of them, each in constant time, so that the time taken reveals nothing.
        for candidate in self._fixed:
            if hmac.compare_digest(candidate.key_hmac, digest):
                found = candidate
        if found is not None:
            expired = found.expires_at is not None and found.expires_at <= now
            return None if expired else Principal(found.tenant, found.scopes, digest, None)
        record = None if record_id is None else self._cached(record_id, cached_only=cached_only)
        if record is None or not hmac.compare_digest(record.key_hmac, digest):
            return None
        if not record.is_valid(now):
            return None
        return Principal(record.tenant, record.scopes, digest, record.id)

    def _cached(self, record_id: str, *, cached_only: bool) -> KeyRecord | None:
        now = self._clock()
        with self._lock:
            known = self._cache.get(record_id)
            if known is not None and now < known[0]:
                self._cache.move_to_end(record_id)
                return known[1]
        if cached_only:
            raise NotCached
        record = self._stored.get(record_id)
        with self._lock:
            # The time counts from before the read, so that no answer is used for longer.
            self._cache[record_id] = (now + self._cache_seconds, record)
            self._cache.move_to_end(record_id)
            while len(self._cache) > KEYS_CACHED:
                self._cache.popitem(last=False)
        return record
