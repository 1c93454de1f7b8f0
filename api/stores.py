"""Stores of the URIs that jobs name, with one S3 connection pool for all of them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.open import open_store, pinned
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store
from strucprune_core.storage.uri import Location, parse_uri

if TYPE_CHECKING:
    from strucprune_core.storage.hub import HubStore

# A request of a client must not wait for minutes until a hub accepts more.
_LONGEST_WAIT_SECONDS = 10.0
# A client takes some 50 ms and a few MB to build; services use few buckets.
_BUCKETS_KEPT = 32


@runtime_checkable
class Presigner(Protocol):
    """A store that can make download URLs for its objects."""

    def presign(self, key: str, expires_seconds: int) -> str:
        """A URL that lets anyone GET the object until it expires."""


class Stores:
    """Opens stores; clients of the same bucket are shared. Safe to share between threads."""

    def __init__(self, s3: S3Settings) -> None:
        self._s3 = s3
        self._bucket = lru_cache(_BUCKETS_KEPT)(self._open_bucket)

    def open(self, uri: str) -> Store:
        """The store rooted at a URI.

        Raises:
            InvalidSpec: the URI is malformed.
        """
        location = _parsed(uri)
        if location.scheme == "hf":
            return _hub(location)
        if location.scheme != "s3":
            return open_store(uri, self._s3)
        bucket = self._bucket(location.bucket)
        return bucket.child(location.key) if location.key else bucket

    def pinned(self, uri: str) -> str:
        """`storage.open.pinned`, which waits no longer than a client's request may."""
        return pinned(uri, longest_wait_seconds=_LONGEST_WAIT_SECONDS)

    def _open_bucket(self, bucket: str) -> Store:
        return open_store(f"s3://{bucket}", self._s3)


def _parsed(uri: str) -> Location:
    try:
        return parse_uri(uri)
    except ValueError as error:
        raise InvalidSpec(str(error)) from error


def _hub(location: Location) -> HubStore:
    from strucprune_core.storage.hub import open_hub

    return open_hub(location, longest_wait_seconds=_LONGEST_WAIT_SECONDS)
