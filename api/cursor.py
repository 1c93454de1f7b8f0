"""The page cursor. It is opaque to clients, so that the index behind it may change."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from pydantic import AfterValidator

_POSITION = re.compile(r"\d{16}:[A-Za-z0-9_]{1,64}")


def encode_cursor(position: str) -> str:
    """The cursor for a position in the ledger."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(text: str) -> str:
    """The position in the ledger that a cursor stands for.

    Raises:
        ValueError: the text is no cursor.
    """
    try:
        padded = text + "=" * (-len(text) % 4)
        position = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        position = ""
    if not _POSITION.fullmatch(position):
        raise ValueError("not a cursor of this list")
    return position


# A query parameter that a route receives as a position in the ledger.
Cursor = Annotated[str, AfterValidator(decode_cursor)]
