"""Records: one field of one line or row of a file of documents. No torch.

Readers stream: memory grows with the longest record, never with the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from strucprune_core.calibration.text import Text
from strucprune_core.errors import InvalidText

# Longer records are refused: no document is that long, and memory stays bounded.
MAX_RECORD_BYTES = 16 << 20
# A file of a few kilobytes can hold any number of rows that are null.
MAX_EMPTY_RECORDS = 1_000_000
# What a conversation must look like, for messages.
SHAPE = 'Each must be a list like [{"role": "user", "content": "..."}, ...].'


@dataclass(frozen=True, slots=True)
class Record:
    """The wanted field of one line or row.

    Attributes:
        where: "line 3" or "row 3", for messages; counted from 1.
        value: What the field holds, as Python data.
    """

    where: str
    value: object


def check_kind(text: Text, record: Record, *, conversations: bool) -> None:
    """Check that a record holds a text, or a conversation; or null, which is skipped.

    Raises:
        InvalidText: it holds something else.
    """
    value = record.value
    if value is None or isinstance(value, list if conversations else str):
        return
    if conversations:
        raise bad_record(text, record.where, f"holds {_kind(value)}, not a conversation", SHAPE)
    raise bad_record(
        text,
        record.where,
        f"holds {_kind(value)}, not text",
        "Name a field of strings in calibration.field, or set calibration.chat_template for "
        "conversations.",
    )


def _kind(value: object) -> str:
    names = {str: "text", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), "a number")


def bad_record(text: Text, where: str, reason: str, remedy: str) -> InvalidText:
    """The error of one record."""
    return InvalidText(f"{where} of {text.key} {reason}", field=text.field, remedy=remedy)
