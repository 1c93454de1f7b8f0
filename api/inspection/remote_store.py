"""A helper's view of a store: it asks the API for bytes, and has no credentials of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.inspection.channel import Channel
from api.inspection.verdict import revived
from strucprune_core.errors import StorageError
from strucprune_core.storage.store import InspectableStore, ObjectInfo, Tick, ignore_bytes


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """An `InspectableStore`; see `serving` for the other side.

    Attributes:
        channel: To the API.
        number: What the API calls the store.
        uri: The store's root.
    """

    channel: Channel = field(repr=False)
    number: int
    uri: str

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and version of an object, or None if it does not exist."""
        reply, _ = ask(self.channel, "stat", store=self.number, key=key)
        if reply["size"] is None:
            return None
        return ObjectInfo(key, int(reply["size"]), reply["version"])

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None)."""
        _, payload = ask(
            self.channel, "read", store=self.number, key=key, start=start, length=length
        )
        return payload

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in the service's order."""
        reply, _ = ask(self.channel, "list", store=self.number, prefix=prefix)
        listing, found = reply["listing"], reply["found"]
        while found:
            for key, size_bytes, version in found:
                yield ObjectInfo(key, int(size_bytes), version)
            reply, _ = ask(self.channel, "page", listing=listing)
            found = reply["found"]

    def check_writable(self) -> None:
        """Raise what a write below the root would raise."""
        ask(self.channel, "check_writable", store=self.number)

    def local_path(self, key: str) -> Path | None:
        """None: the objects lie elsewhere."""
        return None

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Refused: nothing that judges a job copies objects."""
        raise StorageError("an inspecting process downloads nothing")


def open_remote(channel: Channel, uri: str) -> InspectableStore:
    """The store at a URI of the job that is judged."""
    reply, _ = ask(channel, "open", uri=uri)
    return RemoteStore(channel, reply["store"], reply["uri"])


def ask(channel: Channel, call: str, **arguments: Any) -> tuple[dict[str, Any], bytearray]:
    """Call the API, and raise the error that it answers, if any."""
    channel.send({"call": call, **arguments})
    reply, payload = channel.receive()
    if "error" in reply:
        raise revived(reply["error"])
    return reply, payload
