"""Recognises files of other formats than they are read as, by their first bytes. No torch."""

from __future__ import annotations

import re

from strucprune_core.checkpoint.hostile_json import FETCH_LFS, LFS_POINTER
from strucprune_core.errors import InvalidText
from strucprune_core.spec import FileFormat

# Longer than the longest of the marks below.
HEAD_BYTES = 32
_UNPACK = "Unpack it and use the file inside."
_UTF8 = "Convert it to UTF-8."
_WRITE = "Write its texts as UTF-8, JSON lines or parquet."

_MARKS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed (gzip)", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed (xz)", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed (lz4)", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "an archive (7z)", _UNPACK),
    (b"PK\x03\x04", "an archive (zip), or an office document", _UNPACK),
    (b"\xff\xfe", "UTF-16 or UTF-32, not UTF-8", _UTF8),
    (b"\xfe\xff", "UTF-16, not UTF-8", _UTF8),
    (b"\x00\x00\xfe\xff", "UTF-32, not UTF-8", _UTF8),
    (b"ARROW1\x00\x00", "an Arrow file", _WRITE),
    (b"%PDF-", "a PDF document", _WRITE),
    (b"SQLite format 3\x00", "a SQLite database", _WRITE),
    (b"\x89HDF\r\n", "an HDF5 file", _WRITE),
    (LFS_POINTER, "a Git LFS pointer, not the file itself", FETCH_LFS),
)
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_PARQUET = b"PAR1"


def check_head(head: bytes, file_format: FileFormat) -> None:
    """Check the first `HEAD_BYTES` of a file of texts.

    Raises:
        InvalidText: they are those of another format.
    """
    for mark, what, remedy in _MARKS:
        if head.startswith(mark):
            raise InvalidText(f"the file is {what}", remedy=remedy)
    if _BZIP2.match(head):
        raise InvalidText("the file is compressed (bzip2)", remedy=_UNPACK)
    if head.startswith(_PARQUET) and file_format != "parquet":
        raise InvalidText(
            f"the file is parquet, but read as {file_format}",
            remedy="For calibration, set its format to parquet. Evaluation takes plain text.",
        )
