"""Reads texts in a process of its own, which may fail, hang or grow without harm to the job.

    job's process                      process that reads texts (`text_process_main`)
    starts it, sends a request   ->    sets its limits, parses the tokenizer
    reads its stores for it      <->   reads the text, renders conversations, tokenises
    collects tokens              <-    sends tokens as it reads, and its place in the text

Chat templates, a tokenizer's rules and the decompression of parquet run there only. The kernel
enforces limits of memory and processor time, which grow with the text (`process_limits`). Passing a
limit is a final error, since the same text would need as much again. The error names the place in
the text.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strucprune_core.calibration.process_limits import TextLimits
from strucprune_core.calibration.text import Text
from strucprune_core.calibration.text_protocol import (
    BadMessage,
    DocumentsRead,
    Failure,
    Kind,
    Pipes,
    ReadRequest,
    StoreCall,
)
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.child_environment import child_environment
from strucprune_core.errors import (
    InvalidCheckpoint,
    InvalidText,
    OutOfMemory,
    ProcessKilled,
    StrucPruneError,
)
from strucprune_core.oom import OomWatch
from strucprune_core.spec import FileFormat
from strucprune_core.storage.store import Readable

LIMITS = TextLimits()
# A process that sends nothing for this long was suspended, or gets no processor time: the text is
# not at fault.
SILENT_SECONDS = 1800.0
_EXIT_SECONDS = 10.0
_PROGRAM = "strucprune_core.calibration.text_process_main"
_SETTINGS = {
    # One thread: it tokenises one text at a time, and each thread's stack counts as memory.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # pyarrow's own pools reserve a GiB at once.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # transformers renders chat templates and needs no torch for it.
    "USE_TORCH": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
}
# Signals of a library that gets no more memory, or that has a fault.
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)


def text_tokens(
    index: CheckpointIndex,
    text: Text,
    *,
    vocab_size: int,
    file_format: FileFormat = "text",
    document_field: str = "",
    chat: bool = False,
    limit_bytes: int | None = None,
    wait: Callable[[], None] = lambda: None,
    documents: Callable[[DocumentsRead], None] = lambda read: None,
) -> Iterator[NDArray[np.int32]]:
    """Token ids of a text, in pieces, as they are read.

    Args:
        index: The model, with its tokenizer.
        text: The text.
        vocab_size: Rows of the model's embedding.
        file_format: What kind of file it is.
        document_field: Which field of each record is read.
        chat: Whether records are conversations, for the model's chat template.
        limit_bytes: How much of a text is read; all of a plain one if None.
        wait: Called while waiting for the process: a safe point to stop at.
        documents: Called at the end of a file of documents.

    Raises:
        InvalidText: the text is not of its format, or takes too much memory or time.
        InvalidCheckpoint: the tokenizer cannot be read, or takes too much memory or time.
        InvalidSpec: conversations, and the model has no chat template.
        ProcessKilled: the process was ended from outside.
        StorageError: a store refused or failed.
    """
    request = ReadRequest(
        what="tokens",
        uris={"model": index.store.uri, "text": text.store.uri},
        limits=LIMITS,
        vocab_size=vocab_size,
        config=special_tokens(index),
        side_files=tuple(index.other_files),
        key=text.key,
        field=text.field,
        file_format=file_format,
        document_field=document_field,
        chat=chat,
        limit_bytes=limit_bytes,
    )
    with TextProcess(request, {"model": index.store, "text": text.store}, text, wait) as process:
        for kind, payload in process.messages():
            if kind is Kind.TOKENS:
                yield np.frombuffer(payload, dtype=np.int32)
            elif file_format != "text":
                documents(DocumentsRead.model_validate_json(payload))


def tokenizer_facts(index: CheckpointIndex, vocab_size: int) -> tuple[int | None, int]:
    """Id of the token that precedes a text (None if the model names none); number of tokens.

    Args:
        index: The model, with its tokenizer.
        vocab_size: Rows of the model's embedding.

    Raises:
        InvalidCheckpoint: the tokenizer cannot be read, or takes too much memory or time.
    """
    request = ReadRequest(
        what="facts",
        uris={"model": index.store.uri},
        limits=LIMITS,
        vocab_size=vocab_size,
        config=special_tokens(index),
        side_files=tuple(index.other_files),
    )
    with TextProcess(request, {"model": index.store}) as process:
        facts: dict[str, Any] = {}
        for _, payload in process.messages():
            facts = json.loads(payload)
    return facts["start"], facts["vocab_size"]


def converted_tokenizer(store: Readable, side_files: Collection[str], model_type: str) -> bytes:
    """A tokenizer.json made of a model's older files: see `tokenizer_conversion`.

    Args:
        store: The model.
        side_files: Names of its files beside its weights.
        model_type: What kind of model it is.

    Raises:
        InvalidCheckpoint: transformers cannot make one, or it takes too much memory or time.
        StorageError: the store refused or failed.
    """
    request = ReadRequest(
        what="tokenizer",
        uris={"model": store.uri},
        limits=LIMITS,
        vocab_size=0,
        config={"model_type": model_type},
        side_files=tuple(side_files),
    )
    with TextProcess(request, {"model": store}) as process:
        answer = next(payload for kind, payload in process.messages() if kind is Kind.DONE)
    return str(json.loads(answer)["tokenizer"]).encode()


def special_tokens(index: CheckpointIndex) -> dict[str, Any]:
    """What config.json says of the tokens that begin and end a text."""
    names = ("bos_token_id", "eos_token_id")
    return {name: index.config[name] for name in names if name in index.config}


class TextProcess:
    """A process that answers one request. A context manager; leaving it ends the process.

    Args:
        request: The request.
        stores: The stores that it may read.
        text: The text, if one is read: its `tick` is called before each read.
        wait: Called while waiting for a message.
    """

    def __init__(
        self,
        request: ReadRequest,
        stores: Mapping[str, Readable],
        text: Text | None = None,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._stores, self._text, self._wait = stores, text, wait
        self._where: str | None = None
        self._oom = OomWatch()
        self._process = _start(child_environment(_SETTINGS))
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a process without pipes")
        self._pipes = Pipes(self._process.stdout.fileno(), self._process.stdin.fileno())
        self._heard_at = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # If it has ended, reading from it says so.
            self._pipes.send(Kind.REQUEST, request.model_dump_json().encode())

    def __enter__(self) -> TextProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def messages(self) -> Iterator[tuple[Kind, bytes]]:
        """Its TOKENS and ANSWERs, and DONE at the end. Its questions to stores are answered.

        Raises:
            StrucPruneError: it failed, or was killed.
        """
        while True:
            kind, payload = self._next()
            self._heard_at = time.monotonic()
            match kind:
                case Kind.STAT | Kind.READ:
                    self._serve(kind, StoreCall.model_validate_json(payload))
                case Kind.AT:
                    self._where = payload.decode()
                case Kind.TOKENS | Kind.ANSWER:
                    yield kind, payload
                case Kind.DONE:
                    yield kind, payload
                    return
                case Kind.FAILED:
                    raise _error(Failure.model_validate_json(payload))
                case Kind.NO_MEMORY:
                    raise self._too_much("memory")
                case _:
                    raise RuntimeError(f"the process that reads texts sent {kind}")

    def ask(self, kind: Kind, payload: bytes, where: str) -> bytes:
        """Send a message of a session, and wait for its answer.

        Args:
            kind: What is asked.
            payload: The message.
            where: What is encoded or decoded, for errors.

        Raises:
            StrucPruneError: it failed, or was killed.
        """
        self._where, self._heard_at = where, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # If it has ended, reading from it says so.
            self._pipes.send(kind, payload)
        return self.answer()

    def answer(self) -> bytes:
        """The next answer of a session; its questions to stores are answered meanwhile.

        Raises:
            StrucPruneError: it failed, or was killed.
        """
        for kind, payload in self.messages():
            if kind is Kind.ANSWER:
                return payload
        raise RuntimeError("the process that reads texts ended a session")

    def _next(self) -> tuple[Kind, bytes]:
        try:
            message = self._pipes.receive(self._still_waiting)
        except BadMessage as error:
            raise RuntimeError("the process that reads texts violated the protocol") from error
        if message is None:
            raise self._ended()
        return message

    def _still_waiting(self) -> None:
        self._wait()
        if time.monotonic() - self._heard_at > SILENT_SECONDS:
            raise ProcessKilled(
                f"The process that reads texts has not answered for {SILENT_SECONDS:.0f} s."
            )

    def _serve(self, kind: Kind, call: StoreCall) -> None:
        store = self._stores[call.store]
        if kind is Kind.STAT:
            info = store.stat(call.key)
            answer = None if info is None else str(info.size_bytes).encode()
        else:
            if call.store == "text" and self._text is not None:
                self._text.tick()
            answer = bytes(store.read(call.key, call.start, call.length))
        with contextlib.suppress(BrokenPipeError):
            self._pipes.send(Kind.ABSENT if answer is None else Kind.ANSWER, answer or b"")

    def _ended(self) -> Exception:
        """The error for a process that ended without a closing message."""
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return ProcessKilled("The process that reads texts has closed its output.")
        if status == -signal.SIGXCPU:
            return self._too_much("processor time")
        if -status in _CRASHES:
            name = signal.Signals(-status).name
            return self._refusal(
                f"a library failed ({name}), perhaps for lack of memory, while {self._doing()}"
            )
        if status == -signal.SIGKILL and self._oom.fired():
            return OutOfMemory(
                f"The machine ran out of memory while {self._doing()}.",
                remedy="Use a machine with more memory, or a text with shorter records.",
            )
        if status < 0:
            name = signal.Signals(-status).name
            return ProcessKilled(f"The process that reads texts was killed by {name}.")
        return RuntimeError(f"the process that reads texts ended with status {status}; see its log")

    def _doing(self) -> str:
        if self._where is None:
            return "the tokenizer was loaded"
        if self._text is None:
            return f"{self._where} was tokenised"
        return f"{self._where} of {self._text.key} was tokenised"

    def _too_much(self, what: str) -> StrucPruneError:
        """The error for passing a limit."""
        return self._refusal(f"more {what} was needed than is allowed while {self._doing()}")

    def _refusal(self, message: str) -> StrucPruneError:
        if self._where is None or self._text is None:
            return InvalidCheckpoint(
                message,
                field="model.uri",
                remedy="Check tokenizer.json, or save the tokenizer again with transformers.",
            )
        return InvalidText(
            message,
            field=self._text.field,
            remedy="Check the model's chat template and the patterns in its tokenizer.json, or "
            "remove that place from the text. The limits grow with the text.",
        )


def _start(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )


def _error(failure: Failure) -> StrucPruneError:
    """The error that the process reported."""
    return _class_of(failure.code)(failure.message, field=failure.field, remedy=failure.remedy)


def _class_of(code: str) -> type[StrucPruneError]:
    todo: list[type[StrucPruneError]] = [StrucPruneError]
    while todo:
        kind = todo.pop()
        if kind.code == code:
            return kind
        todo += kind.__subclasses__()
    return StrucPruneError
