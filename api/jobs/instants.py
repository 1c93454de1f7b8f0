"""Times as text: RFC 3339 in UTC, with `Z`, as in all JSON of the API."""

from __future__ import annotations

from datetime import UTC, datetime


def instant(seconds: float, timespec: str = "auto") -> str:
    """Unix seconds as text; `timespec` as for `datetime.isoformat`."""
    at = datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec)
    return at.replace("+00:00", "Z")
