"""Where API keys are kept: one object each in the service's state store. No torch.

keys/ID.json     a `KeyRecord`; written when the key is made, and once more when it is revoked

They lie beside the journal, in object storage: Redis may lose all its data without locking anybody
out, or letting a revoked key in again. A record is never removed, so that a list of keys also shows
what was revoked when.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pydantic import ValidationError

from strucprune_core.access.keys import KeyRecord
from strucprune_core.errors import InvalidSpec, StorageError
from strucprune_core.storage.store import Store

_ROOT = "keys/"
_SUFFIX = ".json"


class KeyStore:
    """All keys under one state prefix. Methods raise `StorageError` and its kinds.

    Args:
        state: The store of `STRUCPRUNE_STATE_URI`.
    """

    def __init__(self, state: Store) -> None:
        self._state = state

    def add(self, record: KeyRecord) -> None:
        """Keep a new key."""
        data = record.model_dump_json().encode()
        key = _key(record.id)
        # The store repeats a write whose answer got lost, and then meets its own bytes.
        if not self._state.put_if_absent(key, data) and bytes(self._state.read(key)) != data:
            raise StorageError(f"{key} is taken", remedy="Make another key.")

    def get(self, key_id: str) -> KeyRecord | None:
        """The key of this id, also a revoked one; None if there is none."""
        key = _key(key_id)
        if self._state.stat(key) is None:
            return None
        try:
            return KeyRecord.model_validate_json(bytes(self._state.read(key)))
        except ValidationError:
            # Not chained: the error would quote the record.
            raise StorageError(
                f"{key} in the state store is not the record of a key",
                remedy="Remove that object, and make a new key for its holder.",
            ) from None

    def list(self) -> Iterator[KeyRecord]:
        """Every key, in the store's order; a request for each."""
        for info in self._state.list(_ROOT):
            name = info.key.removeprefix(_ROOT).removesuffix(_SUFFIX)
            record = self.get(name)
            if record is not None:
                yield record

    def revoke(self, key_id: str, at: datetime) -> KeyRecord:
        """Refuse a key from now on; its record afterwards. A revoked key stays as it is.

        Raises:
            InvalidSpec: there is no such key.
        """
        record = self.get(key_id)
        if record is None:
            raise InvalidSpec(
                f"there is no key with the id '{key_id}'",
                remedy="`strucprune keys list` shows the ids.",
            )
        if record.revoked_at is None:
            record = record.model_copy(update={"revoked_at": at})
            self._state.put(_key(key_id), record.model_dump_json().encode())
        return record


def _key(key_id: str) -> str:
    return f"{_ROOT}{key_id}{_SUFFIX}"
