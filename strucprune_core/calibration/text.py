"""From text to token windows: random ones for calibration, consecutive ones for evaluation.

Documents with fields (JSON lines, parquet) are read by `documents`; both end in `draw_windows`.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strucprune_core.calibration.tokenizer import TextTokenizer
from strucprune_core.errors import InvalidText, naming_field
from strucprune_core.storage.store import Readable

# Text is tokenised a block at a time (cut between words), so that memory does not grow with it.
BLOCK_BYTES = 1 << 20
# After this many blocks without a place to cut, the text is cut anyway.
MAX_UNCUT_BLOCKS = 4
# Calibration windows are drawn from at most this much of the text's beginning: more than any
# calibration needs, and reading it takes bounded time.
CALIBRATION_TEXT_BYTES = 64 << 20

Tokens = list[int] | NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Text:
    """A text object in a store.

    Attributes:
        store: Where it lies.
        key: Its name there.
        field: Names it in errors ("calibration.uri").
        tick: Called before each block is read: a safe point to stop at.
    """

    store: Readable
    key: str
    field: str
    tick: Callable[[], None] = lambda: None


def calibration_windows(
    text: Text, tokenizer: TextTokenizer, samples: int, length: int, seed: int
) -> NDArray[np.int32]:
    """Random windows that do not overlap, (samples x length).

    Raises:
        InvalidText: not UTF-8, or too short for that many windows.
    """
    tokens = _token_blocks(text, tokenizer, CALIBRATION_TEXT_BYTES)
    return draw_windows(tokens, samples, length, seed, text.field)


def draw_windows(
    tokens: Iterable[Tokens], samples: int, length: int, seed: int, field: str
) -> NDArray[np.int32]:
    """Random windows of a stream of tokens that do not overlap, (samples x length).

    Raises:
        InvalidText: the stream is too short for that many windows; `field` names it.
    """
    with naming_field(field):
        stream = _take(tokens, limit=None)
    slots = len(stream) // length
    if slots < samples:
        raise _too_short(field, len(stream), samples, length)
    # Windows lie on a grid (which keeps them apart) whose origin is random too.
    generator = np.random.Generator(np.random.PCG64(seed))
    origin = int(generator.integers(0, len(stream) - slots * length + 1))
    chosen = np.sort(generator.choice(slots, size=samples, replace=False))
    starts = generator.permutation(origin + chosen * length)
    return np.stack([stream[start : start + length] for start in starts])


def evaluation_windows(
    text: Text, tokenizer: TextTokenizer, sequences: int, length: int
) -> NDArray[np.int32]:
    """Consecutive windows from the start of the text, (sequences x length).

    Raises:
        InvalidText: not UTF-8, or too short for that many windows.
    """
    tokens = _token_blocks(text, tokenizer, None)
    return first_windows(tokens, sequences, length, text.field)


def first_windows(
    tokens: Iterable[Tokens], sequences: int, length: int, field: str
) -> NDArray[np.int32]:
    """Consecutive windows from the start of a stream of tokens, (sequences x length).

    Raises:
        InvalidText: the stream is too short for that many windows; `field` names it.
    """
    wanted = sequences * length
    with naming_field(field):
        stream = _take(tokens, limit=wanted)
    if len(stream) < wanted:
        raise _too_short(field, len(stream), sequences, length)
    return stream[:wanted].reshape(sequences, length)


def is_cut(text: Text) -> bool:
    """Whether a plain text is longer than what calibration windows are drawn from."""
    return _size(text) > CALIBRATION_TEXT_BYTES


def digest(text: Text) -> str:
    """SHA-256 (hex) of the text's bytes."""
    sha = hashlib.sha256()
    for block in blocks(text):
        sha.update(block)
    return sha.hexdigest()


def _too_short(field: str, tokens: int, sequences: int, length: int) -> InvalidText:
    return InvalidText(
        f"the text has {tokens:,} tokens; {sequences} sequences of {length} need "
        f"{sequences * length:,}",
        field=field,
        remedy="Use a longer text, or ask for fewer or shorter sequences.",
    )


def _take(tokens: Iterable[Tokens], limit: int | None) -> NDArray[np.int32]:
    parts: list[NDArray[np.int32]] = []
    taken = 0
    for block in tokens:
        parts.append(np.array(block, dtype=np.int32))
        taken += len(block)
        if limit is not None and taken >= limit:
            break
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def encode_pieces(
    pieces: Iterable[str], tokenizer: TextTokenizer, *, special_tokens: bool
) -> Iterator[list[int]]:
    """Token ids of a text given in pieces; it is cut between words, wherever the pieces end.

    Special tokens are added at the start only, as if the text were whole.
    """
    rest, first = "", special_tokens
    for piece in pieces:
        rest += piece
        cut = _last_word_start(rest)
        if not cut and len(rest) >= MAX_UNCUT_BLOCKS * BLOCK_BYTES:
            cut = len(rest)
        if cut:
            ids = tokenizer.encode(rest[:cut], special_tokens=first)
            rest, first = rest[cut:], False
            yield ids
    if rest:
        yield tokenizer.encode(rest, special_tokens=first)


def _token_blocks(text: Text, tokenizer: TextTokenizer, limit: int | None) -> Iterator[list[int]]:
    """Token ids of a plain text, block after block."""
    return encode_pieces(decoded(text, limit), tokenizer, special_tokens=True)


def decoded(text: Text, limit: int | None) -> Iterator[str]:
    """A plain text, block after block.

    Args:
        text: The text.
        limit: How many of its bytes; all if None.

    Raises:
        InvalidText: it is not UTF-8.
    """
    size = _size(text)
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        for block in blocks(text, limit):
            yield decode(block)
        if limit is None or size <= limit:
            decode(b"", final=True)  # Yields nothing, but fails on half a character.
    except UnicodeDecodeError as error:
        raise InvalidText(
            f"the text is not UTF-8: {error.reason} at byte {error.start} of a block",
            field=text.field,
            remedy="Convert it to UTF-8.",
        ) from error


def _last_word_start(text: str) -> int:
    """The last single space between a letter or digit and a letter; 0 if there is none.

    A pre-tokeniser begins a new piece at such a space, so cutting before it changes no token. Line
    ends are no such places: some join them to the punctuation before, others to a blank line after.
    """
    at = text.rfind(" ")
    while at > 0 and not (text[at - 1].isalnum() and text[at + 1 : at + 2].isalpha()):
        at = text.rfind(" ", 0, at)
    return max(0, at)


def _size(text: Text) -> int:
    info = text.store.stat(text.key)
    if info is None:
        raise InvalidText(
            f"there is no {text.store.uri}/{text.key}",
            field=text.field,
            remedy="Check the name of the text.",
        )
    return info.size_bytes


def blocks(text: Text, limit: int | None = None) -> Iterator[bytes]:
    """The text's bytes, or the first `limit` of them, a block at a time."""
    size = _size(text) if limit is None else min(_size(text), limit)
    for start in range(0, size, BLOCK_BYTES):
        text.tick()
        yield bytes(text.store.read(text.key, start, min(BLOCK_BYTES, size - start)))
