"""URIs: `s3://bucket/key`, `hf://org/name` or a local path. Checked when parsed. No torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_S3 = "s3://"
_HUB = "hf://"
_FILE = "file:"
# What a hub allows in the names of organisations and repositories.
_HUB_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_HUB_KINDS = {"datasets": "datasets/", "models": ""}
_OTHER_HUB_KINDS = frozenset(
    {"dataset", "model", "space", "spaces", "bucket", "buckets", "kernel", "kernels"}
)
# The only revisions whose slashes are not percent-encoded.
_SPECIAL_REVISION = re.compile(r"refs/(convert/\w+|pr/\d+)(?=/|$)")
COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_REVISION = 255
# A shell would have replaced it. Taken literally, it would name a directory.
_VARIABLE = re.compile(r"\$(\w|\{)")


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI.

    Attributes:
        scheme: "s3", "hf" or "file".
        bucket: Bucket of an s3 URI; repository of an hf URI, `org/name` or `datasets/org/name`; ""
            for a file.
        key: Key or key prefix without leading or trailing slash; the path for a file, as given.
        revision: Branch, tag or commit of an hf URI; "" is its main branch.
    """

    scheme: str
    bucket: str
    key: str
    revision: str = ""

    def __str__(self) -> str:
        if self.scheme == "hf":
            revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
            return f"{_HUB}{self.bucket}{revision}{'/' if self.key else ''}{self.key}"
        return f"s3://{self.bucket}/{self.key}" if self.scheme == "s3" else self.key

    @property
    def may_change(self) -> bool:
        """Whether the URI names a branch or tag of a hub, which may be another commit tomorrow."""
        return self.scheme == "hf" and not COMMIT.fullmatch(self.revision)

    def at_commit(self, commit: str) -> Location:
        """The same place of a hub at a commit, 40 hexadecimal digits.

        Raises:
            ValueError: that is no commit.
        """
        if not COMMIT.fullmatch(commit):
            raise ValueError(f"{commit!r} is no commit")
        return replace(self, revision=commit)

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
    So is a path in a repository of a hub: `hf://[datasets/]org/name[@revision][/path]`.

    Raises:
        ValueError: unknown scheme, bad name of a bucket or repository, `..` or an empty segment in
            the key, a backslash or a control character in it, or a shell variable that was not
            replaced. The message says which.
    """
    if _CONTROL.search(uri):
        raise ValueError("a URI must not contain control characters")
    if uri.startswith(_S3):
        return _parse_s3(uri)
    if uri.startswith(_HUB):
        return _parse_hub(uri)
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
    return Location("s3", bucket, _checked_key(key, "an s3 key"))


def _checked_key(key: str, what: str) -> str:
    key = key.rstrip("/")
    if key and any(_decoded(part) in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"{what} must not contain empty, '.' or '..' segments")
    return key


def _parse_hub(uri: str) -> Location:
    """The syntax of `huggingface_hub`, without repositories that hold neither model nor text.

    An '@' after the name begins the revision, whose slashes are written as %2F; elsewhere it is a
    character like others.
    """
    if "\\" in uri:
        raise ValueError("an hf URI must not contain a backslash")
    body = uri.removeprefix(_HUB).rstrip("/")
    kind, _, rest = body.partition("/")
    if kind in _OTHER_HUB_KINDS:
        raise ValueError(f"'{kind}/' is not supported; use hf://org/name or hf://datasets/org/name")
    if kind not in _HUB_KINDS:
        kind, rest = "models", body
    organisation, _, rest = rest.partition("/")
    end = next((at for at, character in enumerate(rest) if character in "/@"), len(rest))
    name, rest = rest[:end], rest[end:]
    if not (_HUB_NAME.fullmatch(organisation) and _HUB_NAME.fullmatch(name)):
        raise ValueError(
            f"'{organisation}/{name}' is not a valid name of a repository; write "
            f"hf://org/name[@revision][/path], or hf://datasets/org/name..."
        )
    revision = ""
    if rest.startswith("@"):
        revision, rest = _split_revision(rest[1:])
    key = _checked_key(rest.removeprefix("/"), "a path in a repository")
    return Location("hf", f"{_HUB_KINDS[kind]}{organisation}/{name}", key, revision)


def _split_revision(text: str) -> tuple[str, str]:
    """The revision at the beginning of a text, and what follows it."""
    special = _SPECIAL_REVISION.match(text)
    if special:
        return special[0], text[special.end() :]
    encoded, slash, rest = text.partition("/")
    revision = _decoded(encoded)
    segments = revision.split("/")
    if any(part in ("", ".", "..") for part in segments) or len(revision) > _MAX_REVISION:
        raise ValueError(
            "the revision of an hf URI is a branch, tag or commit: hf://org/name@main; write a "
            "slash in it as %2F"
        )
    if _CONTROL.search(revision) or "\\" in revision:
        raise ValueError("a URI must not contain control characters or a backslash")
    return revision, slash + rest


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
        raise ValueError(
            f"scheme '{scheme}' is not supported; use s3://bucket/key, hf://org/name or a "
            "local path"
        )
    if not path:
        raise ValueError("the path is empty")
    if path.startswith("s3:"):
        raise ValueError("an s3 URI begins with two slashes: s3://bucket/key")
    if path.startswith("hf:"):
        raise ValueError("an hf URI begins with two slashes: hf://org/name")
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


def canonical(uri: str) -> str:
    """The one way to write a place, for `contains`: without links and `..` in a local path."""
    location = parse_uri(uri)
    return str(location) if location.scheme != "file" else str(location.path.resolve())


def check_uri(uri: str) -> str:
    """Return the URI if it parses (for pydantic fields).

    Raises:
        ValueError: as `parse_uri`.
    """
    parse_uri(uri)
    return uri


def check_writable_uri(uri: str) -> str:
    """Return the URI if it parses and a job can write there (for pydantic fields).

    Raises:
        ValueError: as `parse_uri`; or it is a place of a hub.
    """
    if parse_uri(uri).scheme == "hf":
        raise ValueError(
            "a hub is only read; write to s3://bucket/prefix or a directory, and copy the result "
            "to the hub afterwards: strucprune publish DIR hf://org/name"
        )
    return uri


def short_name(uri: str) -> str:
    """A name for what lies at a URI: its last part, without a revision."""
    location = parse_uri(uri)
    path = location.key or location.bucket
    return path.rstrip("/").rpartition("/")[2] or path


def may_be_hub_id(text: str) -> bool:
    """Whether a relative path could be meant as the name of a model on a hub, `org/name`."""
    organisation, slash, name = text.partition("/")
    return bool(slash and _HUB_NAME.fullmatch(organisation) and _HUB_NAME.fullmatch(name))
