"""The program that reads texts for a job, in a process of its own: see `text_process`.

    python -P -m strucprune_core.calibration.text_process_main

Only this process runs what a model or a text may make a program do: chat templates, a tokenizer's
rules, the decompression of parquet pages. It has no credentials: it asks the job's process for the
bytes it reads. It never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from strucprune_core.calibration import text as plain
from strucprune_core.calibration.chat import ChatRenderer
from strucprune_core.calibration.documents import (
    document_tokens,
    end_of_text,
    read_records,
    start_of_text,
)
from strucprune_core.calibration.process_limits import ProcessLimits
from strucprune_core.calibration.records import Record
from strucprune_core.calibration.text import Text, decoded, encode_pieces
from strucprune_core.calibration.text_protocol import (
    DecodeCall,
    DocumentsRead,
    EncodeCall,
    Failure,
    Kind,
    Pipes,
    ReadRequest,
    SpecialTokens,
    StoreCall,
)
from strucprune_core.calibration.tokenizer import TextTokenizer, load_tokenizer
from strucprune_core.calibration.tokenizer_config import (
    CONVERTIBLE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    check_chat_template,
    read_tokenizer_config,
)
from strucprune_core.calibration.tokenizer_conversion import converted
from strucprune_core.errors import StrucPruneError
from strucprune_core.storage.store import ObjectInfo

_TOKENIZER_FILES = (
    *(name for names in CONVERTIBLE for name in names),
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)
# Of text, at most, for the limits.
_BYTES_PER_TOKEN = 16


class ServedStore:
    """A store that another process reads for this one.

    Args:
        name: "model" or "text".
        uri: Its root, for messages.
        pipes: To the other process.
    """

    def __init__(self, name: str, uri: str, pipes: Pipes) -> None:
        self._name, self._uri, self._pipes = name, uri, pipes

    @property
    def uri(self) -> str:
        """The root, as a user would write it."""
        return self._uri

    def stat(self, key: str) -> ObjectInfo | None:
        """See `Store.stat`."""
        size = self._ask(Kind.STAT, StoreCall(store=self._name, key=key))
        return None if size is None else ObjectInfo(key, int(size))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """See `Store.read`. If it fails, this process ends: the other one knows the reason."""
        call = StoreCall(store=self._name, key=key, start=start, length=length)
        return bytearray(self._ask(Kind.READ, call) or b"")

    def _ask(self, kind: Kind, call: StoreCall) -> bytes | None:
        self._pipes.send(kind, call.model_dump_json().encode())
        answer = self._pipes.receive()
        if answer is None:
            # The process that asked needs no more of the text, or has ended.
            raise SystemExit(0)
        kind, payload = answer
        return None if kind is Kind.ABSENT else payload


class Reader:
    """Reads what a request asks for, and reports where in the text it is.

    Args:
        request: What to read.
        pipes: To the process that asked.
    """

    def __init__(self, request: ReadRequest, pipes: Pipes) -> None:
        self._request, self._pipes = request, pipes
        self._limits = ProcessLimits(request.limits)
        self._model = ServedStore("model", request.uris["model"], pipes)

    def run(self) -> dict[str, Any]:
        """Send tokens as they are read. Returns the closing message.

        Raises:
            StrucPruneError: of the text or the tokenizer.
        """
        if self._request.what == "tokenizer":
            return {"tokenizer": self._converted()}
        tokenizer = self._tokenizer()
        if self._request.what in ("facts", "session"):
            settings = read_tokenizer_config(self._model, self._request.side_files)
            start = start_of_text(tokenizer, settings, self._request.config)
            if self._request.what == "facts":
                return {"start": start, "vocab_size": tokenizer.vocab_size}
            end = end_of_text(tokenizer, settings, self._request.config)
            self._answer_calls(tokenizer, SpecialTokens(start=start, end=end))
            return {}
        text = Text(
            ServedStore("text", self._request.uris["text"], self._pipes),
            self._request.key,
            self._request.field,
        )
        if self._request.file_format == "text":
            self._send(self._plain_tokens(text, tokenizer))
            return {}
        sha = hashlib.sha256()
        records = read_records(text, self._request.file_format, self._request.document_field)
        self._send(self._document_tokens(text, records, tokenizer, sha.update))
        cut = next(records, None) is not None
        return DocumentsRead(sha256=sha.hexdigest(), cut=cut).model_dump()

    def _answer_calls(self, tokenizer: TextTokenizer, tokens: SpecialTokens) -> None:
        """Encode and decode until the other process needs no more."""
        self._pipes.send(Kind.ANSWER, tokens.model_dump_json().encode())
        while (message := self._pipes.receive()) is not None:
            kind, payload = message
            answer: list[list[int]] | list[str]
            if kind is Kind.ENCODE:
                texts = EncodeCall.model_validate_json(payload)
                answer = [self._encoded(tokenizer, text, texts) for text in texts.texts]
            else:
                ids = DecodeCall.model_validate_json(payload)
                answer = [self._decoded(tokenizer, each, ids) for each in ids.tokens]
            self._pipes.send(Kind.ANSWER, json.dumps(answer).encode())

    def _encoded(self, tokenizer: TextTokenizer, text: str, call: EncodeCall) -> list[int]:
        self._limits.prompt(len(text.encode()))
        return tokenizer.encode(text, special_tokens=call.special_tokens)

    def _decoded(self, tokenizer: TextTokenizer, ids: list[int], call: DecodeCall) -> str:
        self._limits.prompt(_BYTES_PER_TOKEN * len(ids))
        return tokenizer.decode(ids, special_tokens=call.special_tokens)

    def _tokenizer(self) -> TextTokenizer:
        info = self._model.stat(TOKENIZER)
        self._limits.tokenizer(info.size_bytes if info else 0)
        return load_tokenizer(bytes(self._model.read(TOKENIZER)), self._request.vocab_size)

    def _converted(self) -> str:
        files: dict[str, bytes] = {}
        for name in _TOKENIZER_FILES:
            if name in self._request.side_files:
                info = self._model.stat(name)
                self._limits.conversion(info.size_bytes if info else 0)
                files[name] = bytes(self._model.read(name))
        return converted(files, str(self._request.config["model_type"]))

    def _plain_tokens(self, text: Text, tokenizer: TextTokenizer) -> Iterator[list[int]]:
        self._at("the text")
        uncut = 0

        def announced() -> Iterator[str]:
            nonlocal uncut
            for piece in decoded(text, self._request.limit_bytes):
                size = len(piece.encode())
                uncut += size
                self._limits.text(size, uncut)
                yield piece

        for ids in encode_pieces(announced(), tokenizer, special_tokens=True):
            uncut = 0
            yield ids

    def _document_tokens(
        self,
        text: Text,
        records: Iterator[Record],
        tokenizer: TextTokenizer,
        seen: Callable[[bytes], None],
    ) -> Iterator[list[int]]:
        request = self._request
        settings = read_tokenizer_config(self._model, request.side_files)
        chat = None
        if request.chat:
            template = check_chat_template(settings)
            chat = ChatRenderer(template, settings.special_tokens)
        yield from document_tokens(
            text,
            self._announced(records),
            tokenizer,
            end=end_of_text(tokenizer, settings, request.config),
            chat=chat,
            seen=seen,
            limit_bytes=request.limit_bytes,
        )

    def _announced(self, records: Iterable[Record]) -> Iterator[Record]:
        self._at("its beginning")
        for record in records:
            value = record.value
            shown = value if isinstance(value, str) else repr(value)
            self._limits.record(len(shown.encode("utf-8", "surrogatepass")))
            self._at(record.where)
            yield record

    def _at(self, where: str) -> None:
        self._pipes.send(Kind.AT, where.encode())

    def _send(self, tokens: Iterable[plain.Tokens]) -> None:
        for ids in tokens:
            self._pipes.send(Kind.TOKENS, np.asarray(ids, dtype=np.int32).tobytes())


def main() -> int:
    """Answer one request; the exit status."""
    # A Ctrl-C reaches the job's process too, which ends this one if it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipes = Pipes(os.dup(0), os.dup(1))
    # Libraries may print: that must not get between the messages.
    os.dup2(2, 1)
    first = pipes.receive()
    if first is None:
        return 0
    try:
        request = ReadRequest.model_validate_json(first[1])
        closing = Reader(request, pipes).run()
        pipes.send(Kind.DONE, json.dumps(closing).encode())
    except BrokenPipeError:
        pass
    except MemoryError:
        pipes.send(Kind.NO_MEMORY)
    except StrucPruneError as error:
        pipes.send(Kind.FAILED, Failure.of(error).model_dump_json().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
