"""A model's files on this machine, for steps that read its weights many times over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.scratch.directories import scratch_directory
from strucprune_core.storage.local import LocalStore


@contextlib.contextmanager
def local_weights(
    index: CheckpointIndex, scratch: Path, tick: Callable[[], None]
) -> Iterator[CheckpointIndex]:
    """The checkpoint with its weights on this machine, downloaded if they are elsewhere.

    Args:
        index: The checkpoint.
        scratch: Directory for the downloaded files.
        tick: Called while they are downloaded. It may raise.
    """
    if all(index.store.local_path(name) is not None for name in index.file_sizes):
        yield index
        return
    with scratch_directory(scratch) as folder:
        for name in index.file_sizes:
            index.store.download(name, folder / name, lambda done: tick())
        yield replace(index, store=LocalStore(folder))
