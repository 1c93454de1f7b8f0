"""Parquet in storage, by ranged reads: only the wanted column, a few pages at a time. No torch.

pyarrow is loaded when a parquet file is named, not before.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from strucprune_core.calibration.records import MAX_RECORD_BYTES, SHAPE, Record, bad_record
from strucprune_core.calibration.text import Text
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidText, ObjectNotFound, StrucPruneError
from strucprune_core.storage.store import Readable

# A column chunk is read in pieces of this size, so that a row group never lies in memory whole.
_READ_BYTES = 1 << 20
# All rows of a batch lie in memory at once. With a dictionary, a file of kilobytes holds any number
# of the longest documents.
_BATCH_ROWS = 8
# The footer is not trusted, but read whole: limits of its size, and of its strings and lists.
MAX_FOOTER_BYTES = 16 << 20
_MAX_FOOTER_STRING_BYTES = 16 << 20
_MAX_FOOTER_ENTRIES = 1 << 20
_TAIL_BYTES = 8
_MAX_NAMES_SHOWN = 12


def parquet_records(text: Text, field: str) -> Iterator[Record]:
    """One column of every row.

    Raises:
        InvalidText: not a parquet file, damaged, no such column, or a value is too long.
        StorageError: the store refused or failed.
    """
    with _opened(text) as file:
        _check_column(text, file, field)
        number = 0
        batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=[field], use_threads=False)
        for batch in batches:
            text.tick()
            (column,) = batch.columns
            for index in range(len(column)):
                number += 1
                yield Record(f"row {number}", _value(text, f"row {number}", column, index))


def check_parquet(text: Text, field: str, *, conversations: bool) -> None:
    """Check by the footer alone that the file has rows, and a column of texts or conversations.

    Raises:
        InvalidText: it has not.
        StorageError: the store refused or failed.
    """
    with _opened(text) as file:
        _check_column(text, file, field)
        if file.metadata.num_rows == 0:
            raise InvalidText(f"{text.key} has no rows", remedy="Use a file with documents.")
        _check_type(text, file.schema_arrow.field(field).type, field, conversations)


def _check_column(text: Text, file: Any, field: str) -> None:
    names = file.schema_arrow.names
    if names.count(field) != 1:
        known = ", ".join(shown(name) for name in names[:_MAX_NAMES_SHOWN]) or "none"
        raise InvalidText(
            f"{text.key} has no column {shown(field)} (its columns: {known})",
            field=f"{text.field.rpartition('.')[0]}.field",
            remedy="Set calibration.field to the column that holds the documents.",
        )


def _check_type(text: Text, kind: Any, field: str, conversations: bool) -> None:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    lists = types.is_list(kind) or types.is_large_list(kind)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if lists if conversations else texts:
        return
    wanted, remedy = (
        ("lists of messages", SHAPE)
        if conversations
        else ("text", "Name a column of strings, or set calibration.chat_template for lists.")
    )
    raise InvalidText(
        f"column {shown(field)} of {text.key} holds {shown(str(kind))}, not {wanted}",
        field=f"{text.field.rpartition('.')[0]}.field",
        remedy=remedy,
    )


def _value(text: Text, where: str, column: Any, index: int) -> object:
    value = column[index]
    # Checked before it becomes Python data, which takes several times the memory.
    if column.slice(index, 1).nbytes > MAX_RECORD_BYTES:
        raise bad_record(
            text,
            where,
            f"is longer than {MAX_RECORD_BYTES:,} bytes",
            "Split such documents, or leave them out.",
        )
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise bad_record(
            text, where, f"is not UTF-8: {error.reason}", "Write the column as UTF-8 strings."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Such as a date that Python cannot hold.
        raise bad_record(
            text,
            where,
            f"cannot be read: {shown(str(error), 300)}",
            "Leave such fields out: only role and content are needed.",
        ) from error


@contextmanager
def _opened(text: Text) -> Iterator[Any]:
    from pyarrow import parquet

    info = text.store.stat(text.key)
    if info is None:
        raise ObjectNotFound(f"there is no {text.store.uri}/{text.key}", field=text.field)
    _check_footer(text, info.size_bytes)
    stored = _StoredFile(text.store, text.key, info.size_bytes)
    try:
        with parquet.ParquetFile(
            stored,
            buffer_size=_READ_BYTES,
            pre_buffer=False,
            thrift_string_size_limit=_MAX_FOOTER_STRING_BYTES,
            thrift_container_size_limit=_MAX_FOOTER_ENTRIES,
        ) as file:
            yield file
    except (StrucPruneError, MemoryError):
        raise
    except Exception as error:  # Hostile files raise more than pyarrow's own errors.
        raise _unreadable(text, shown(str(error), 300)) from error


def _check_footer(text: Text, size_bytes: int) -> None:
    """A parquet file ends in its footer, the footer's length (4 bytes) and "PAR1"."""
    if size_bytes < _TAIL_BYTES:
        raise _unreadable(text, f"{size_bytes} bytes are too few")
    tail = bytes(text.store.read(text.key, size_bytes - _TAIL_BYTES, _TAIL_BYTES))
    if tail[4:] != b"PAR1":
        raise _unreadable(text, 'it does not end in "PAR1"')
    if int.from_bytes(tail[:4], "little") > MAX_FOOTER_BYTES:
        raise _unreadable(text, f"its footer is longer than {MAX_FOOTER_BYTES:,} bytes")


def _unreadable(text: Text, reason: str) -> InvalidText:
    return InvalidText(
        f"{text.key} cannot be read as parquet: {reason}",
        field=text.field,
        remedy="Check the file, or set calibration.format if it is another format.",
    )


class _StoredFile(io.RawIOBase):
    """A stored object as a file that pyarrow can seek in."""

    def __init__(self, store: Readable, key: str, size_bytes: int) -> None:
        super().__init__()
        self._store, self._key, self._size = store, key, size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        data = bytes(self._store.read(self._key, self._position, length))
        self._position += length
        return data
