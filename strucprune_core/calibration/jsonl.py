"""JSON lines: one object per line. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from strucprune_core.calibration.records import MAX_RECORD_BYTES, Record, bad_record
from strucprune_core.calibration.text import Text, blocks
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.errors import InvalidCheckpoint

_MAX_DEPTH = 32  # Conversations with tool calls nest about ten deep.
_MAX_NAMES_SHOWN = 12
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def jsonl_records(text: Text, field: str) -> Iterator[Record]:
    """One field of every line; blank lines are skipped.

    Raises:
        InvalidText: a line is too long, not UTF-8, not a JSON object, or has no such field; or
            there are megabytes of blank lines between two.
    """
    blank_bytes = 0
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            blank_bytes = 0
            yield Record(f"line {number}", _field(text, f"line {number}", line, field))
            continue
        blank_bytes += len(line) + 1
        if blank_bytes > MAX_RECORD_BYTES:
            raise bad_record(
                text,
                f"line {number}",
                f"ends {MAX_RECORD_BYTES:,} bytes of blank lines",
                "Leave them out of the file.",
            )


def _field(text: Text, where: str, line: bytes, field: str) -> object:
    try:
        record = parse_object(line, "it", max_depth=_MAX_DEPTH)
    except InvalidCheckpoint as error:
        raise bad_record(
            text,
            where,
            f"is not a record: {error.message}",
            "Write one JSON object per line, in UTF-8.",
        ) from error
    if field not in record:
        names = ", ".join(shown(name) for name in list(record)[:_MAX_NAMES_SHOWN]) or "none"
        raise bad_record(
            text,
            where,
            f"has no field {shown(field)} (its fields: {names})",
            "Set calibration.field to the field that holds the documents.",
        )
    return record[field]


def _lines(text: Text) -> Iterator[bytes]:
    rest, number = b"", 0
    for block in blocks(text):
        *complete, rest = (rest + block).split(b"\n")
        for line in complete:
            number += 1
            yield _checked(text, number, line)
        _checked(text, number + 1, rest)
    if rest:
        yield _checked(text, number + 1, rest)


def _checked(text: Text, number: int, line: bytes) -> bytes:
    if len(line) > MAX_RECORD_BYTES:
        raise bad_record(
            text,
            f"line {number}",
            f"is longer than {MAX_RECORD_BYTES:,} bytes",
            "Write one JSON object per line, or set calibration.format if it is not JSON.",
        )
    return line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
