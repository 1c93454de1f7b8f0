"""Artefact URIs: `s3://bucket/key` or a local path. Parsed once, checked before use. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_S3 = "s3://"
_FILE = "file://"


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI.

    Attributes:
        scheme: "s3" or "file".
        bucket: Bucket of an s3 URI, "" for a file.
        key: Key or key prefix without leading or trailing slash; the path for a file.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.scheme == "s3" else self.key


def parse_uri(uri: str) -> Location:
    """Parse and check a URI.

    Raises:
        ValueError: unknown scheme, bad bucket name, `..` or an empty segment in the key,
            a backslash or a control character. The text says which.
    """
    if _CONTROL.search(uri):
        raise ValueError("a URI must not contain control characters")
    if uri.startswith(_S3):
        return _parse_s3(uri)
    path = uri.removeprefix(_FILE)
    if "://" in path:
        scheme = path.split("://", 1)[0]
        raise ValueError(f"scheme '{scheme}' is not supported; use s3://bucket/key or a local path")
    if not path:
        raise ValueError("the path is empty")
    return Location("file", "", path)


def _parse_s3(uri: str) -> Location:
    if "\\" in uri or "%" in uri or "?" in uri or "#" in uri:
        raise ValueError("an s3 URI must not contain a backslash, '%', '?' or '#'")
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"'{bucket}' is not a valid bucket name")
    key = key.rstrip("/")
    if any(part in ("", ".", "..") for part in key.split("/")) and key:
        raise ValueError("an s3 key must not contain empty, '.' or '..' segments")
    return Location("s3", bucket, key)


def check_uri(uri: str) -> str:
    """Return the URI if it parses (for pydantic fields).

    Raises:
        ValueError: as `parse_uri`.
    """
    parse_uri(uri)
    return uri
