"""Whose key it is: from the environment, or from the state store by way of a short memory."""

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

# Keys remembered; beyond, those used longest ago are looked up again.
KEYS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        key_hmac: HMAC of the key that was shown, to look again later whether it still holds.
        key_id: The stored key's id; None for a key of the environment.
    """

    tenant: str
    scopes: frozenset[Scope]
    key_hmac: str = field(default="", repr=False, compare=False)
    key_id: str | None = field(default=None, compare=False)


class Unremembered(Exception):
    """The state store would have to be asked."""


class Callers:
    """Knows callers by their keys. Safe to share between threads.

    Args:
        fixed: Keys from the environment.
        stored: Keys that are made and revoked while the service runs.
        pepper: Secret that the hashes depend on.
        remember_seconds: For so long at most what the store said is believed: a revoked key is
            refused everywhere after this time, and a key's absence noticed.
        clock: Seconds, for the memory.
    """

    def __init__(
        self,
        fixed: tuple[ApiKey, ...],
        stored: KeyStore,
        pepper: str,
        remember_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = fixed
        self._stored = stored
        self._pepper = pepper
        self._remember_seconds = remember_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, tuple[float, KeyRecord | None]] = OrderedDict()

    def authenticate(self, key: str, *, from_memory: bool = False) -> Principal | None:
        """The principal of a key, or None.

        Args:
            key: What the caller has sent.
            from_memory: Do not ask the state store, which may take long.

        Raises:
            StorageError: whether the key holds cannot be told now.
            Unremembered: memory alone cannot tell.
        """
        digest, record_id = hash_key(key, self._pepper), key_id(key, self._pepper)
        return self._find(digest, record_id, from_memory=from_memory)

    def confirm(self, principal: Principal, *, from_memory: bool = False) -> bool:
        """Whether the caller's key still holds: for answers that last.

        Raises:
            StorageError: that cannot be told now.
            Unremembered: memory alone cannot tell.
        """
        found = self._find(principal.key_hmac, principal.key_id, from_memory=from_memory)
        return found is not None and found == principal

    def _find(self, digest: str, record_id: str | None, *, from_memory: bool) -> Principal | None:
        now = datetime.now(UTC)
        found: ApiKey | None = None
        # All are compared, each in constant time: the time taken tells nothing about any of them.
        for candidate in self._fixed:
            if hmac.compare_digest(candidate.key_hmac, digest):
                found = candidate
        if found is not None:
            expired = found.expires_at is not None and found.expires_at <= now
            return None if expired else Principal(found.tenant, found.scopes, digest, None)
        record = None if record_id is None else self._recall(record_id, from_memory=from_memory)
        if record is None or not hmac.compare_digest(record.key_hmac, digest):
            return None
        if not record.is_valid(now):
            return None
        return Principal(record.tenant, record.scopes, digest, record.id)

    def _recall(self, record_id: str, *, from_memory: bool) -> KeyRecord | None:
        now = self._clock()
        with self._lock:
            known = self._memory.get(record_id)
            if known is not None and now < known[0]:
                self._memory.move_to_end(record_id)
                return known[1]
        if from_memory:
            raise Unremembered
        record = self._stored.get(record_id)
        with self._lock:
            # Counted from before the look: it is not believed longer than it was asked for.
            self._memory[record_id] = (now + self._remember_seconds, record)
            self._memory.move_to_end(record_id)
            while len(self._memory) > KEYS_REMEMBERED:
                self._memory.popitem(last=False)
        return record
