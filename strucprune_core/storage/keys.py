"""Checks keys of stored objects, so that none leads out of a store's root. No torch."""

from __future__ import annotations

import re

from strucprune_core.errors import AccessDenied

MAX_KEY_BYTES = 1024  # The limit of S3 itself.
_RENAME = "Rename the object, or correct the file that names it."
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


def check_key(key: str) -> str:
    """Return the key if it names an object below a root.

    Raises:
        AccessDenied: the key is empty, absolute or too long, has an empty, '.' or '..' segment, a
            backslash or a control character.
    """
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise _bad_key(f"the key {key!r} has an empty, '.' or '..' segment")
    return _check_characters(key)


def check_prefix(prefix: str) -> str:
    """Return the prefix if every key that starts with it lies below the root; "" is the root.

    Raises:
        AccessDenied: as `check_key`; the last segment may be empty or incomplete.
    """
    *complete, _ = prefix.split("/")
    if any(part in ("", ".", "..") for part in complete) or prefix.endswith("/.."):
        raise _bad_key(f"the prefix {prefix!r} has an empty, '.' or '..' segment")
    return _check_characters(prefix)


def _check_characters(key: str) -> str:
    if _FORBIDDEN.search(key):
        raise _bad_key(f"the key {key!r} has a backslash or a control character")
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise _bad_key(f"the key {key!r} is not valid Unicode") from None
    if size_bytes > MAX_KEY_BYTES:
        raise _bad_key(f"a key of {size_bytes} bytes is over the limit of {MAX_KEY_BYTES}")
    return key


def _bad_key(message: str) -> AccessDenied:
    return AccessDenied(message, remedy=_RENAME)
