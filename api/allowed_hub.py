"""Which repositories of a hub a tenant's jobs may read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

HUB_PATTERN = re.compile(r"(datasets/)?[A-Za-z0-9._*-]+/[A-Za-z0-9._*-]+")
"""`org/name` or `datasets/org/name`; a `*` is any part of one name."""


def is_allowed(repository: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns covers the repository.

    Args:
        repository: `org/name`, or `datasets/org/name`.
        patterns: Patterns that match `HUB_PATTERN`.
    """
    return any(_covers(pattern.split("/"), repository.split("/")) for pattern in patterns)


def _covers(pattern: list[str], repository: list[str]) -> bool:
    """A name must match its own part: `*/*` is every model, and no dataset."""
    return len(pattern) == len(repository) and all(map(fnmatchcase, repository, pattern))
