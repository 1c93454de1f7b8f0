"""JSON that is not trusted: parsed only if it is small, shallow and unambiguous. No torch."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from strucprune_core.errors import InvalidCheckpoint

# One match per string or bracket. Possessive repeats keep the scan linear on any input, and an
# unterminated string swallows the rest, which the parser then refuses.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)

# A clone without Git LFS holds a pointer in place of a large file, which begins like this.
LFS_POINTER = b"version https://git-lfs"
FETCH_LFS = "Fetch the file: `git lfs pull` in the clone."


def parse_object(data: bytes, what: str, *, max_depth: int) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        data: The document; the caller has bounded its size.
        what: Name of the document, for messages.
        max_depth: Nesting allowed; the outermost object has depth 1.

    Raises:
        InvalidCheckpoint: not UTF-8, not JSON, not an object, nested too deep, a key twice in one
            object, NaN or infinity, or an absurdly long number.
    """
    refuse_lfs_pointer(data, what)
    _check_depth(data, what, max_depth)
    try:
        parsed = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:  # ValueError: also bad UTF-8 and bad JSON.
        raise InvalidCheckpoint(f"{what} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidCheckpoint(f"{what} is not a JSON object")
    return parsed


def refuse_lfs_pointer(data: bytes, what: str) -> None:
    """Refuse the pointer that a clone without Git LFS holds in place of a large file.

    Raises:
        InvalidCheckpoint: it is one.
    """
    if data.startswith(LFS_POINTER):
        raise InvalidCheckpoint(
            f"{what} is a Git LFS pointer, not the file itself", remedy=FETCH_LFS
        )


def shown(value: object, limit: int = 120) -> str:
    """An untrusted value made safe for a message: quoted, escaped, cut."""
    text = ascii(value) if not isinstance(value, str) else ascii(value[: limit + 1])
    return text if len(text) <= limit else f"{text[:limit]}..."


def _check_depth(data: bytes, what: str, max_depth: int) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > max_depth:
            raise InvalidCheckpoint(f"{what} is nested deeper than {max_depth} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} is there twice in one object")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
