"""Copies local files into a store, under a name that follows from their content. No torch.

The same files always go to the same place, and other files never do. So an upload that broke off
continues with the file it was at, a second one sends nothing, and no file that a job may be reading
is replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from strucprune_core.errors import InvalidSpec, StorageError
from strucprune_core.storage.keys import check_key
from strucprune_core.storage.store import Store

# Weights in other forms than safetensors: no job reads them.
_OTHER_WEIGHTS = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".tflite"}
)
_DIGEST_DIGITS = 16
_BLOCK_BYTES = 1 << 20

OnBytes = Callable[[str, int, int], None]
"""Called with the name of a file, its bytes that are done, and its bytes in all."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to send.

    Attributes:
        name: Its key under the place where all go.
        path: Where it lies.
        size_bytes: Its size.
        sha256: Hex digest of its content.
    """

    name: str
    path: Path
    size_bytes: int
    sha256: str


def paths_of(place: Path) -> list[Path]:
    """The file itself, or the files of a directory that a job could read, by name.

    Left out are directories below it, hidden files, and weights in other forms than safetensors.

    Raises:
        InvalidSpec: there is nothing to send.
    """
    if place.is_file():
        return [place]
    found = sorted(
        path
        for path in place.iterdir()
        if path.is_file() and path.name[0] != "." and path.suffix not in _OTHER_WEIGHTS
    )
    if not found:
        raise InvalidSpec(f"{place} has no files to upload", remedy="Name another directory.")
    return found


def measured(paths: Sequence[Path], on_bytes: OnBytes) -> list[LocalFile]:
    """The files with their digests. Reads all of them.

    Raises:
        StorageError: one cannot be read.
    """
    return [_measured(path, on_bytes) for path in paths]


def _measured(path: Path, on_bytes: OnBytes) -> LocalFile:
    digest, done = hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                on_bytes(path.name, done, total)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}", remedy="Check its permissions."
        ) from error
    return LocalFile(check_key(path.name), path, done, digest.hexdigest())


def content_name(name: str, files: Sequence[LocalFile]) -> str:
    """A name for files that no others have: `llama-3f2a91c04be7d815`."""
    content = json.dumps([[file.name, file.size_bytes, file.sha256] for file in files])
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_DIGITS]}"


def missing(files: Sequence[LocalFile], store: Store) -> Iterator[LocalFile]:
    """Those that are not in the store yet.

    Args:
        files: To be sent.
        store: Rooted at a place with their `content_name`, so that a file of the same name and size
            there is the same file.
    """
    for file in files:
        there = store.stat(file.name)
        if there is None or there.size_bytes != file.size_bytes:
            yield file


def send(file: LocalFile, store: Store, on_bytes: OnBytes) -> None:
    """Write a file to the store, large ones in parts.

    Raises:
        StorageError: the store refused or failed; or the file was changed meanwhile.
    """
    store.upload(file.name, file.path, lambda done: on_bytes(file.name, done, file.size_bytes))
    there = store.stat(file.name)
    if there is None or there.size_bytes != file.size_bytes:
        raise StorageError(
            f"{file.path} was changed while it was uploaded", remedy="Submit the job again."
        )
    on_bytes(file.name, file.size_bytes, file.size_bytes)
