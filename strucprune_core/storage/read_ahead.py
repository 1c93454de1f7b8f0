"""A cache for reading a remote store: blocks in a scratch directory, the next ones fetched ahead.

A layer that is processed in panels is read once per micro-batch. A remote store must not be asked
each time, nor while the device waits. So objects are read in blocks, which stay on disk while they
are in use; other threads fetch the blocks behind a read meanwhile, and what is expected to be read
next. New blocks replace the oldest, so that the disk holds a few layers and never a large model.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from strucprune_core.errors import ScratchUnavailable
from strucprune_core.scratch.directories import scratch_errors
from strucprune_core.storage.store import ObjectInfo, ReadableStore, Tick, ignore_bytes

BLOCK_BYTES = 8 * 2**20
"""Large enough that requests are few, small enough that the first block arrives soon."""

AHEAD_BLOCKS = 6
"""Blocks fetched before they are asked for."""

THREADS = 3

CACHE_BYTES = 512 * 2**20
"""Disk for what was read, of a model's weights: all of a small model, some layers of another."""

Block = tuple[str, int]


class ReadAheadStore:
    """A `ReadableStore` whose reads go through a bounded cache; all else is passed on.

    Args:
        store: The store behind it.
        directory: Where blocks are kept; its files are removed when the store is closed.
        limit_bytes: Most bytes kept.
        block_bytes: Size of a block.
    """

    def __init__(
        self,
        store: ReadableStore,
        directory: Path,
        limit_bytes: int,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._store, self._block_bytes = store, block_bytes
        # Blocks that are being fetched must not push out those that are being read.
        self._most = max(limit_bytes // block_bytes, 2 * (AHEAD_BLOCKS + THREADS))
        with scratch_errors("blocks of the model's files"):
            self._folder = tempfile.TemporaryDirectory(dir=directory, prefix="blocks-")
        self._blocks: OrderedDict[Block, Future[Path]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._reading: Counter[Block] = Counter()  # Not to be removed now.
        self._expected: deque[Block] = deque()
        self._fetching = 0
        self._is_open = True
        # A fetch that ends at once is seen to by the thread that asked for it.
        self._lock = threading.RLock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")

    def close(self) -> None:
        """Stop fetching and remove all blocks."""
        self._is_open = False
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()

    @property
    def uri(self) -> str:
        """The root of the store behind."""
        return self._store.uri

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None).

        Raises:
            ObjectNotFound: no such object.
            StorageError: the object is shorter, or the store failed.
        """
        size = self._size(key)
        if size is None:
            return self._store.read(key, start, length)  # Raises what is wrong.
        stop = size if length is None else start + length
        if not 0 <= start <= stop <= size:
            return self._store.read(key, start, length)
        result = bytearray(stop - start)
        view = memoryview(result)
        for number in range(start // self._block_bytes, -(-stop // self._block_bytes)):
            first = number * self._block_bytes
            begin, end = max(start, first), min(stop, first + self._block_bytes)
            self._copy((key, number), begin - first, view[begin - start : end - start])
        return result

    def expect(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Fetch what is likely to be read next, as long as nothing that is wanted now waits for it.

        Replaces what was expected before. A failure is raised by the read that wants the block.

        Args:
            ranges: Key, offset and length of each part.
        """
        blocks = {
            (key, number): None
            for key, start, length in ranges
            if self._size(key) is not None
            for number in range(
                start // self._block_bytes, -(-(start + length) // self._block_bytes)
            )
        }
        with self._lock:
            self._expected = deque([*blocks][: self._most // 2])
            self._fetch_expected()

    def _fetch_expected(self) -> None:
        while self._is_open and self._expected and self._fetching < THREADS:
            block = self._expected.popleft()
            if block not in self._blocks:
                self._begin(block)

    def _begin(self, block: Block) -> None:
        """Fetch a block, under the lock."""
        self._fetching += 1
        future = self._blocks[block] = self._threads.submit(self._fetch, block)
        future.add_done_callback(self._fetched)
        removable = [each for each in self._blocks if each not in self._reading]
        for old in removable[: max(0, len(self._blocks) - self._most)]:
            self._blocks.pop(old).add_done_callback(_remove)

    def _fetched(self, _: Future[Path]) -> None:
        with self._lock:
            self._fetching -= 1
            self._fetch_expected()

    def _copy(self, block: Block, offset: int, target: memoryview) -> None:
        """Bytes of a block from an offset on."""
        future = self._wanted(block)
        try:
            with scratch_errors("a block"), future.result().open("rb", buffering=0) as file:
                file.seek(offset)
                filled = 0
                while filled < len(target):
                    count = file.readinto(target[filled:])
                    if not count:
                        raise ScratchUnavailable(f"a block of {block[0]} is cut short")
                    filled += count
        except BaseException:
            with self._lock:  # The next read fetches it again.
                self._blocks.pop(block, None)
            raise
        finally:
            with self._lock:
                self._reading[block] -= 1
                self._reading += Counter()  # Without those that nobody reads.

    def _wanted(self, block: Block) -> Future[Path]:
        """A block, fetched or being fetched; the ones behind it are requested too."""
        key, number = block
        last = (self._sizes[key] - 1) // self._block_bytes
        with self._lock:
            self._reading[block] += 1
            for ahead in range(number, min(number + AHEAD_BLOCKS, last) + 1):
                if (key, ahead) not in self._blocks:
                    self._begin((key, ahead))
            self._blocks.move_to_end(block)
            return self._blocks[block]

    def _fetch(self, block: Block) -> Path:
        key, number = block
        first = number * self._block_bytes
        length = min(self._block_bytes, self._sizes[key] - first)
        data = self._store.read(key, first, length)
        with (
            scratch_errors(f"a block of {length:,} bytes"),
            tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False) as file,
        ):
            file.write(data)
        return Path(file.name)

    def _size(self, key: str) -> int | None:
        """Size of an object, asked for once: the model's files do not change during a job."""
        if key not in self._sizes:
            info = self._store.stat(key)
            if info is None:
                return None
            self._sizes[key] = info.size_bytes
        return self._sizes[key]

    def stat(self, key: str) -> ObjectInfo | None:
        """As the store behind."""
        return self._store.stat(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As the store behind."""
        return self._store.list(prefix)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """As the store behind."""
        self._store.download(key, path, tick)

    def local_path(self, key: str) -> Path | None:
        """As the store behind."""
        return self._store.local_path(key)


def _remove(future: Future[Path]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().unlink(missing_ok=True)
