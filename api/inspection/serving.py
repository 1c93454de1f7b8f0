"""Reads stores for a helper: a limited number of bytes, and only from stores that its job names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from api.inspection.channel import ChannelBroken
from strucprune_core.errors import InvalidCheckpoint, InvalidSpec
from strucprune_core.plan.places import NamesPlaces, named_uris
from strucprune_core.storage.open import split_object
from strucprune_core.storage.store import ObjectInfo, Store

# The largest documents that are read whole (headers, indices, footers) have 16 MiB.
MAX_READ_BYTES = 16 * 2**20
MAX_BYTES = 160 * 2**20
# A model with the largest allowed number of shards takes two reads for each.
MAX_CALLS = 10_000
_PAGE = 1000

Reply = tuple[dict[str, Any], bytes | bytearray]


class HelperCalls:
    """Answers the calls of a helper while it judges one job.

    Args:
        job: The job. Its URIs must be allowed.
        open_store: Opens a URI.

    Attributes:
        field: The field of the job whose store was used last.
    """

    def __init__(self, job: NamesPlaces, open_store: Callable[[str], Store]) -> None:
        self.field = "model.uri"
        self._open_store = open_store
        self._places = _places(job)
        self._stores: list[tuple[str, Store]] = []
        self._listings: list[Iterator[ObjectInfo]] = []
        self._calls = self._bytes = 0

    def answer(self, message: dict[str, Any]) -> Reply:
        """Answer one call.

        Raises:
            StrucPruneError: raised by the store, to be passed on to the helper.
            ChannelBroken: the call is not of the protocol.
        """
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise self._too_much(f"{MAX_CALLS} requests")
        try:
            match message["call"]:
                case "open":
                    return self._open(message["uri"])
                case "stat":
                    info = self._store(message["store"]).stat(message["key"])
                    if info is None:
                        return {"size": None}, b""
                    return {"size": info.size_bytes, "version": info.version}, b""
                case "read":
                    return {}, self._read(**{key: message[key] for key in _READ})
                case "list":
                    store = self._store(message["store"])
                    self._listings.append(iter(store.list(message["prefix"])))
                    return self._page(len(self._listings) - 1)
                case "page":
                    return self._page(message["listing"])
                case "check_writable":
                    self._store(message["store"]).check_writable()
                    return {}, b""
        except (KeyError, IndexError, TypeError) as error:
            raise ChannelBroken("a call with wrong arguments") from error
        raise ChannelBroken("an unknown call")

    def _open(self, uri: str) -> Reply:
        place = self._places.get(uri)
        if place is None:
            raise ChannelBroken("a call for a place that the job does not name")
        self.field = place
        store = self._open_store(uri)
        self._stores.append((place, store))
        return {"store": len(self._stores) - 1, "uri": store.uri}, b""

    def _store(self, number: int) -> Store:
        self.field, store = self._stores[number]
        return store

    def _read(self, store: int, key: str, start: int, length: int | None) -> bytearray:
        opened = self._store(store)
        if length is None:
            info = opened.stat(key)
            length = max(0, info.size_bytes - start) if info is not None else 0
        if length > MAX_READ_BYTES:
            raise self._too_much(f"{MAX_READ_BYTES} bytes at once")
        self._bytes += length
        if self._bytes > MAX_BYTES:
            raise self._too_much(f"{MAX_BYTES} bytes")
        return opened.read(key, start, length)

    def _page(self, number: int) -> Reply:
        found = islice(self._listings[number], _PAGE)
        return {
            "listing": number,
            "found": [(info.key, info.size_bytes, info.version) for info in found],
        }, b""

    def _too_much(self, what: str) -> InvalidCheckpoint:
        return InvalidCheckpoint(
            f"reading it takes more than {what}",
            field=self.field,
            remedy="Check that this is the prefix of one model, or one text.",
        )


_READ = ("store", "key", "start", "length")
# Fields that name an object, not a prefix.
_TEXTS = ("calibration.uri", "evaluation.uri")


def _places(job: NamesPlaces) -> dict[str, str]:
    """URIs of the stores that judging a job opens, each with its field of the job."""
    places: dict[str, str] = {}
    for field, uri in named_uris(job).items():
        with suppress(InvalidSpec):  # the helper reports it
            places.setdefault(split_object(uri)[0] if field in _TEXTS else uri, field)
    return places
