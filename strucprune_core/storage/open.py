"""From a URI to a store. No torch.

boto3 is loaded only when an s3 URI is opened, huggingface_hub only for an hf URI.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store
from strucprune_core.storage.uri import Location, parse_uri


def open_store(uri: str, s3: S3Settings | None = None) -> Store:
    """The store rooted at a URI. Makes no request and creates nothing.

    Args:
        uri: `s3://bucket/prefix`, `hf://org/name` (read only), or a local directory.
        s3: How to reach S3; None reads the environment.

    Raises:
        InvalidSpec: the URI or the settings are malformed.
    """
    location = _parse(uri)
    if location.scheme == "file":
        return LocalStore(_path(location))
    if location.scheme == "hf":
        from strucprune_core.storage.hub import open_hub

        return open_hub(location)
    from strucprune_core.storage.s3 import open_s3

    return open_s3(location.bucket, location.key, s3 or S3Settings.from_environment())


def pinned(uri: str, *, longest_wait_seconds: float | None = None) -> str:
    """The URI, with the commit in place of a branch or tag of a hub.

    Only such a URI makes a request: what lies at others is told by versions of objects.

    Args:
        uri: Any place.
        longest_wait_seconds: See `storage.hub.open_hub`.

    Raises:
        InvalidSpec: the URI is malformed.
        StorageError: the hub refused, failed, or knows no such repository or revision.
    """
    location = _parse(uri)
    if not location.may_change:
        return uri
    from strucprune_core.storage.hub import open_hub

    hub = open_hub(location, longest_wait_seconds=longest_wait_seconds)
    return str(location.at_commit(hub.repository.commit))


def split_object(uri: str) -> tuple[str, str]:
    """URI of the parent prefix and name of the object, for a URI that names one object.

    Links on the way to a local file are the user's own and are resolved here.

    Raises:
        InvalidSpec: the URI is malformed or names no object.
    """
    location = _parse(uri)
    if location.scheme == "file":
        path = _path(location).resolve()
        parent, name = str(path.parent), path.name
    else:
        folder, _, name = location.key.rpartition("/")
        parent = str(replace(location, key=folder)).rstrip("/")
    if not name:
        raise InvalidSpec(f"'{uri}' names no object", remedy="Give the URI of one text object.")
    return parent, name


def open_object(uri: str, s3: S3Settings | None = None) -> tuple[Store, str]:
    """The store of an object's parent prefix, and the object's key there.

    Raises:
        InvalidSpec: as `open_store` and `split_object`.
    """
    parent, name = split_object(uri)
    return open_store(parent, s3), name


def _parse(uri: str) -> Location:
    try:
        return parse_uri(uri)
    except ValueError as error:
        raise InvalidSpec(str(error)) from error


def _path(location: Location) -> Path:
    try:
        return location.path
    except ValueError as error:
        raise InvalidSpec(str(error)) from error
