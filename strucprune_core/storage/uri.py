"""Artefact URIs: `s3://bucket/key` or a local path. Parsed once, checked before use. No torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_S3 = "s3://"
_FILE = "file:"
# A shell would have replaced it. Taken literally, it would name a directory.
_VARIABLE = re.compile(r"\$(\w|\{)")


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI.

    Attributes:
        scheme: "s3" or "file".
        bucket: Bucket of an s3 URI, "" for a file.
        key: Key or key prefix without leading or trailing slash; the path for a file, as given.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.scheme == "s3" else self.key

    @property
    def path(self) -> Path:
        """The path of a file or directory, with a leading `~` or `~user` expanded.

        Raises:
            ValueError: there is no such user.
        """
        expanded = os.path.expanduser(self.key)  # noqa: PTH111 - Path would take "./~" for "~"
        if self.key.startswith("~") and expanded == self.key:
            raise ValueError(
                f"'{self.key}' begins with the home directory of a user who does not exist; write "
                f"'./{self.key}' for a name that begins with '~'"
            )
        return Path(expanded)


def parse_uri(uri: str) -> Location:
    """Parse and check a URI.

    An S3 key is taken literally, without percent-encoding: '#', '%', '?', '+' and spaces are
    characters like others. Only '%2e%2e' as a segment is refused like '..': a proxy may decode it.

    Raises:
        ValueError: unknown scheme, bad bucket name, `..` or an empty segment in the key, a
            backslash or a control character in it, or a shell variable that was not replaced. The
            message says which.
    """
    if _CONTROL.search(uri):
        raise ValueError("a URI must not contain control characters")
    if uri.startswith(_S3):
        return _parse_s3(uri)
    return Location("file", "", _parse_file(uri))


def _parse_s3(uri: str) -> Location:
    if "\\" in uri:
        raise ValueError("an s3 URI must not contain a backslash")
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"'{bucket}' is not a valid bucket name: 3 to 63 of a-z, 0-9, '.' and '-' in "
            f"s3://bucket/key"
        )
    key = key.rstrip("/")
    if key and any(_decoded(part) in ("", ".", "..") for part in key.split("/")):
        raise ValueError("an s3 key must not contain empty, '.' or '..' segments")
    return Location("s3", bucket, key)


def _decoded(segment: str) -> str:
    """A segment without percent-encoding, however often it was encoded."""
    while (once := unquote(segment)) != segment:
        segment = once
    return segment


def _parse_file(uri: str) -> str:
    """The path in a `file:` URI, or the path itself."""
    path = uri
    if uri.startswith(_FILE):
        path = uri.removeprefix(_FILE)
        if path.startswith("//"):
            path = path.removeprefix("//").removeprefix("localhost")
        if not path.startswith("/"):
            raise ValueError("a file URI names an absolute path: file:///directory/name")
    if "://" in path:
        scheme = path.split("://", 1)[0]
        raise ValueError(f"scheme '{scheme}' is not supported; use s3://bucket/key or a local path")
    if not path:
        raise ValueError("the path is empty")
    if path.startswith("s3:"):
        raise ValueError("an s3 URI begins with two slashes: s3://bucket/key")
    if _VARIABLE.match(path):
        raise ValueError(
            f"'{path}' begins with a shell variable that was not replaced; write the path out, or "
            f"'./{path}' for a name that begins with '$'"
        )
    return path


def contains(root: str, place: str) -> bool:
    """Whether `place` is `root` or below it: s3://b/team does not contain s3://b/team-two.

    Both are URIs as stores give them, or absolute paths.
    """
    return place == root or place.startswith(root.rstrip("/") + "/")


def check_uri(uri: str) -> str:
    """Return the URI if it parses (for pydantic fields).

    Raises:
        ValueError: as `parse_uri`.
    """
    parse_uri(uri)
    return uri
