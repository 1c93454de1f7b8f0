"""From documents to one stream of tokens: each tokenised on its own, then the end-of-text token.

Models are trained on such streams (documents packed back to back), so its windows look like
training data: most begin inside a document, and some hold the end of one and the beginning of the
next. The chat template writes the end of a conversation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from strucprune_core.calibration import text as plain
from strucprune_core.calibration.chat import ChatRenderer
from strucprune_core.calibration.jsonl import jsonl_records
from strucprune_core.calibration.parquet import parquet_records
from strucprune_core.calibration.records import (
    MAX_EMPTY_RECORDS,
    Record,
    bad_record,
    check_kind,
)
from strucprune_core.calibration.text import Text, encode_pieces
from strucprune_core.calibration.tokenizer import TextTokenizer
from strucprune_core.calibration.tokenizer_config import TokenizerConfig
from strucprune_core.spec import FileFormat


def read_records(text: Text, file_format: FileFormat, field: str) -> Iterator[Record]:
    """The field of every record of a JSON lines or parquet file."""
    return (parquet_records if file_format == "parquet" else jsonl_records)(text, field)


def end_of_text(
    tokenizer: TextTokenizer, settings: TokenizerConfig, config: dict[str, Any]
) -> int | None:
    """Id of the token that ends a document, None if the model names none.

    The tokenizer's `eos_token` if it has one, else the (first) `eos_token_id` of config.json.
    """
    return _named_token("eos_token", tokenizer, settings, config)


def start_of_text(
    tokenizer: TextTokenizer, settings: TokenizerConfig, config: dict[str, Any]
) -> int | None:
    """Id of the token that precedes a text, None if the model names none.

    The beginning-of-sequence token or, for models trained without one, the end-of-text token.
    """
    token = _named_token("bos_token", tokenizer, settings, config)
    return end_of_text(tokenizer, settings, config) if token is None else token


def _named_token(
    name: str, tokenizer: TextTokenizer, settings: TokenizerConfig, config: dict[str, Any]
) -> int | None:
    text = settings.special_tokens.get(name)
    if text is not None:
        number = tokenizer.token_id(text)
        if number is not None:
            return number
    token = config.get(f"{name}_id")
    if isinstance(token, list):
        token = token[0] if token else None
    known = type(token) is int and 0 <= token < tokenizer.vocab_size
    return token if known else None


def document_tokens(
    text: Text,
    records: Iterator[Record],
    tokenizer: TextTokenizer,
    *,
    end: int | None = None,
    chat: ChatRenderer | None = None,
    seen: Callable[[bytes], None] = lambda data: None,
    limit_bytes: int | None = None,
) -> Iterator[list[int]]:
    """Token ids, document after document; null and empty ones are skipped.

    Args:
        text: The file, for messages.
        records: Its records.
        tokenizer: The model's.
        end: Put after each document that does not end with it. Not after conversations.
        chat: Renders records, which are then conversations.
        seen: Called with the bytes of each document, to compute a digest.
        limit_bytes: Reading stops after this many bytes of documents; 64 MiB if None.

    Raises:
        InvalidText: a record holds something else, or far too many are empty.
    """
    left = plain.CALIBRATION_TEXT_BYTES if limit_bytes is None else limit_bytes
    empty = 0
    for record in records:
        document = _document(text, record, chat)
        if not document:
            empty += 1
            _check_empty(text, record, empty)
            continue
        data = _encoded(text, record, document)
        seen(data + b"\0")
        last = None
        for ids in _encode(document, tokenizer, special_tokens=chat is None):
            yield ids
            last = ids[-1] if ids else last
        if chat is None and end is not None and last != end:
            yield [end]
        left -= len(data)
        if left <= 0:
            return


def _check_empty(text: Text, record: Record, count: int) -> None:
    if count > MAX_EMPTY_RECORDS:
        raise bad_record(
            text,
            record.where,
            f"is one of more than {MAX_EMPTY_RECORDS:,} that hold no text",
            "Leave them out of the file.",
        )


def _document(text: Text, record: Record, chat: ChatRenderer | None) -> str:
    check_kind(text, record, conversations=chat is not None)
    if record.value is None:
        return ""
    return str(record.value) if chat is None else chat.render(text, record)


def _encoded(text: Text, record: Record, document: str) -> bytes:
    try:
        return document.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair.
        raise bad_record(
            text,
            record.where,
            f"holds text that is not Unicode: {error.reason}",
            "Write such characters as UTF-8, not as single surrogates.",
        ) from error


def _encode(
    document: str, tokenizer: TextTokenizer, *, special_tokens: bool
) -> Iterator[list[int]]:
    """Token ids of one document; a long one is split, so that memory stays bounded."""
    step = plain.BLOCK_BYTES
    if len(document) <= step:
        yield tokenizer.encode(document, special_tokens=special_tokens)
        return
    pieces = (document[start : start + step] for start in range(0, len(document), step))
    yield from encode_pieces(pieces, tokenizer, special_tokens=special_tokens)
