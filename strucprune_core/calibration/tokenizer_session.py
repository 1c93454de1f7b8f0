"""A model's tokenizer for many short texts, in the process that reads texts.

A tokenizer's rules come with the model and are not trusted (see `text_process`). Prompts of tasks
are encoded, and what a model writes is decoded, by one such process, which is asked many times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from strucprune_core.calibration.text_process import LIMITS, TextProcess, special_tokens
from strucprune_core.calibration.text_protocol import (
    DecodeCall,
    EncodeCall,
    Kind,
    ReadRequest,
    SpecialTokens,
)
from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.errors import InvalidText

# Characters in one message.
_MESSAGE_CHARACTERS = 1 << 20


class TokenizerSession:
    """Encodes and decodes. A context manager; leaving it ends the process.

    Args:
        index: The model, with its tokenizer.
        vocab_size: Rows of the model's embedding.
        wait: Called while waiting for the process: a safe point to stop at.

    Raises:
        InvalidCheckpoint: the tokenizer cannot be read, or takes too much memory or time. So do the
            methods.
        ProcessKilled: the process was ended from outside. So do the methods.
    """

    def __init__(
        self, index: CheckpointIndex, vocab_size: int, wait: Callable[[], None] = lambda: None
    ) -> None:
        request = ReadRequest(
            what="session",
            uris={"model": index.store.uri},
            limits=LIMITS,
            vocab_size=vocab_size,
            config=special_tokens(index),
            side_files=tuple(index.other_files),
        )
        self._process = TextProcess(request, {"model": index.store}, wait=wait)
        try:
            self.tokens = SpecialTokens.model_validate_json(self._process.answer())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TokenizerSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def encode(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[list[int]]:
        """Token ids of texts.

        Args:
            texts: The texts.
            special_tokens: Whether to add what the tokenizer begins or ends texts with.

        Raises:
            InvalidText: a text is not valid Unicode, or the tokenizer has no token for something in
                it; no field is named.
        """
        ids: list[list[int]] = []
        for part in _messages(texts):
            _check_unicode(part)
            call = EncodeCall(texts=part, special_tokens=special_tokens)
            data = call.model_dump_json().encode()
            ids += json.loads(self._process.ask(Kind.ENCODE, data, "a prompt"))
        return ids

    def decode(self, tokens: Sequence[list[int]], *, special_tokens: bool = False) -> list[str]:
        """Texts of token ids.

        Args:
            tokens: Ids of each text.
            special_tokens: Whether the text of special tokens is part of it.
        """
        if not tokens:
            return []
        call = DecodeCall(tokens=list(tokens), special_tokens=special_tokens)
        data = call.model_dump_json().encode()
        texts: list[str] = json.loads(self._process.ask(Kind.DECODE, data, "an answer"))
        return texts


def _check_unicode(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(
                f"a prompt is not valid Unicode: {shown(text[error.start : error.end])}",
                remedy="Remove lone surrogates from the data.",
            ) from error


def _messages(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in parts of some size, at least one in each."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > _MESSAGE_CHARACTERS:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part
