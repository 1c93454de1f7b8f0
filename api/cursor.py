"""The page cursor: opaque to clients, so that the index behind it may change."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from pydantic import AfterValidator

_POSITION = re.compile(r"\d{16}:[A-Za-z0-9_]{1,64}")


def encode_cursor(position: str) -> str:
    """The wire form of a ledger position."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(text: str) -> str:
    """The ledger position of a wire form.

    Raises:
        ValueError: this is no cursor of ours.
    """
    try:
        padded = text + "=" * (-len(text) % 4)
        position = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        position = ""
    if not _POSITION.fullmatch(position):
        raise ValueError("not a cursor of this list")
    return position


# A query parameter that arrives in a route as a ledger position.
Cursor = Annotated[str, AfterValidator(decode_cursor)]
