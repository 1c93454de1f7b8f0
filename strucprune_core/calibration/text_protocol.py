"""Messages between the process that runs a job and the one that reads its texts (`text_process`).

A message is one byte that names its kind, eight bytes that say its length, and its bytes. The
process that reads texts may run hostile programs, so its messages are checked like other inputs.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from strucprune_core.calibration.process_limits import TextLimits
from strucprune_core.errors import StrucPruneError
from strucprune_core.spec import FileFormat

_HEAD = struct.Struct(">cQ")
_READ_BYTES = 1 << 20
_TICK_SECONDS = 0.1
# The tokens of one piece of text are the largest message; a longer one is refused.
MAX_MESSAGE_BYTES = 256 << 20


class Kind(Enum):
    """The kind of a message.

    To the process that reads texts: REQUEST first, then ANSWER or ABSENT to each STAT and READ.
    From it: AT and TOKENS while it reads, at the end one of DONE, FAILED and NO_MEMORY.

    In a session with a tokenizer: ENCODE and DECODE to it, and an ANSWER to each from it.
    """

    REQUEST = b"q"
    ANSWER = b"a"
    ABSENT = b"n"
    STAT = b"s"
    READ = b"r"
    AT = b"w"
    TOKENS = b"t"
    DONE = b"d"
    FAILED = b"e"
    NO_MEMORY = b"m"
    ENCODE = b"c"
    DECODE = b"x"


class ReadRequest(BaseModel):
    """What is to be read.

    Attributes:
        what: The tokens of the text, only facts about the tokenizer, a tokenizer.json made of
            older files, or a session that encodes and decodes what it is sent.
        uris: Of the stores "model" and "text", for messages.
        limits: For memory and time.
        vocab_size: Rows of the model's embedding.
        config: What config.json says of special tokens; for a tokenizer.json, its model type.
        side_files: Names of the model's files beside its weights.
        key: The text's name in its store.
        field: Names the text in errors.
        file_format: Of the text.
        document_field: Which field of each record is read.
        chat: Whether records are conversations.
        limit_bytes: How much of a plain text is read; all if None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: Literal["tokens", "facts", "tokenizer", "session"]
    uris: dict[str, str]
    limits: TextLimits
    vocab_size: int
    config: dict[str, Any] = {}
    side_files: tuple[str, ...] = ()
    key: str = ""
    field: str = ""
    file_format: FileFormat = "text"
    document_field: str = ""
    chat: bool = False
    limit_bytes: int | None = None


class DocumentsRead(BaseModel):
    """What reading a file of documents gave.

    Attributes:
        sha256: Of the documents that were read, hex.
        cut: Whether there are more.
    """

    sha256: str
    cut: bool


class SpecialTokens(BaseModel):
    """The tokens that begin and end a text: see `documents.start_of_text`, `end_of_text`."""

    start: int | None
    end: int | None


class EncodeCall(BaseModel):
    """Texts to turn into tokens.

    Attributes:
        texts: The texts.
        special_tokens: Whether to add what the tokenizer begins or ends texts with.
    """

    texts: list[str]
    special_tokens: bool


class DecodeCall(BaseModel):
    """Tokens to turn into texts.

    Attributes:
        tokens: Ids of each text.
        special_tokens: Whether the text of special tokens is part of it.
    """

    tokens: list[list[int]]
    special_tokens: bool


class StoreCall(BaseModel):
    """A question to the job's process: STAT or READ."""

    store: str
    key: str
    start: int = 0
    length: int | None = None


class Failure(BaseModel):
    """An error of the text or the model, to be raised again in the process that asked."""

    code: str
    message: str
    field: str | None
    remedy: str | None

    @classmethod
    def of(cls, error: StrucPruneError) -> Failure:
        """The message of an error."""
        return cls(code=error.code, message=error.message, field=error.field, remedy=error.remedy)


class BadMessage(Exception):
    """The other process wrote something that is not a message."""


class Pipes:
    """Messages over two file descriptors.

    Args:
        source: Where messages come from.
        sink: Where they go.
    """

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._data = bytearray()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Write one message.

        Raises:
            BrokenPipeError: the other process has ended.
        """
        data = memoryview(_HEAD.pack(kind.value, len(payload)) + payload)
        while data:
            data = data[os.write(self._sink, data) :]

    def receive(self, wait: Callable[[], None] | None = None) -> tuple[Kind, bytes] | None:
        """The next message; None if the other process has ended.

        Args:
            wait: Called ten times a second while there is none; may raise.

        Raises:
            BadMessage: it is malformed.
        """
        if not self._fill(_HEAD.size, wait):
            return None
        kind, length = self._head()
        if not self._fill(_HEAD.size + length, wait):
            return None
        payload = bytes(self._data[_HEAD.size : _HEAD.size + length])
        del self._data[: _HEAD.size + length]
        return kind, payload

    def _head(self) -> tuple[Kind, int]:
        letter, length = _HEAD.unpack_from(self._data)
        if length > MAX_MESSAGE_BYTES:
            raise BadMessage(f"a message of {length} bytes")
        try:
            return Kind(letter), length
        except ValueError as error:
            raise BadMessage(f"a message of the kind {letter!r}") from error

    def _fill(self, size_bytes: int, wait: Callable[[], None] | None) -> bool:
        """Read until `size_bytes` are buffered; False at the end of the stream."""
        while len(self._data) < size_bytes:
            if wait is not None and not select.select([self._source], [], [], _TICK_SECONDS)[0]:
                wait()
                continue
            data = os.read(self._source, _READ_BYTES)
            if not data:
                return False
            self._data += data
        return True
