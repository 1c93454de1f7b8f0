"""Transfers files to and from S3 in parallel parts, with s3transfer, as boto3 itself does.

boto3's `upload_file` blocks until the end. It calls back from other threads, where an exception
counts as a failed request and is repeated. Here the caller's thread waits, ticks, and may abandon
the transfer, whose parts are then removed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3transfer.exceptions import RetriesExceededError
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber

from strucprune_core.storage.store import Tick

__all__ = ["RetriesExceededError", "download", "upload"]

TICK_SECONDS = 0.5
# Bounds the memory of a transfer to about threads x chunk, plus the queue of 256 KiB blocks.
_CONFIG = TransferConfig(
    multipart_threshold=32 * 2**20,
    multipart_chunksize=16 * 2**20,
    max_request_concurrency=4,
    max_io_queue_size=64,
)


class _Watch(BaseSubscriber):  # type: ignore[misc]
    """Counts the bytes of one transfer and signals its end. The transfer's threads call it."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes transferred so far; the number falls when a part is repeated."""
        with self._lock:
            return self._bytes

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        """Add bytes, a negative number when a part is repeated."""
        with self._lock:
            self._bytes += bytes_transferred

    def on_done(self, future: Any, **_: Any) -> None:
        """The transfer has succeeded or failed."""
        self.ended.set()


def upload(client: Any, path: Path, bucket: str, key: str, tick: Tick) -> None:
    """Write a local file as an object. Raises what boto3 raises, and what `tick` raises."""
    _run(client, lambda to, watch: to.upload(str(path), bucket, key, subscribers=[watch]), tick)


def download(client: Any, bucket: str, key: str, path: Path, tick: Tick) -> None:
    """Write an object to a local file. Raises what boto3 raises, and what `tick` raises."""
    _run(client, lambda to, watch: to.download(bucket, key, str(path), subscribers=[watch]), tick)


def _run(client: Any, begin: Callable[[Any, _Watch], Any], tick: Tick) -> None:
    watch = _Watch()
    with TransferManager(client, _CONFIG) as manager:  # An exception cancels it.
        future = begin(manager, watch)
        while not watch.ended.wait(TICK_SECONDS):
            tick(watch.bytes)
        future.result()
