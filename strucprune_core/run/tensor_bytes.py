"""Live tensor bytes, counted operation by operation: what an accelerator's allocator would hold.

A GPU counts its own allocations. A CPU has no such counter, and resident memory includes the
interpreter and freed pages. So here the results of every operation are counted as torch dispatches
it. Buffers that a kernel takes and returns within one operation are not seen.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strucprune_core.errors import OutOfMemory


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors created in its context while they live.

    Each thread that is to count enters it itself.

    A tensor that wraps memory of others (a memory-mapped file, a NumPy array) counts nothing, nor
    does a view of it, nor a tensor on the meta device.

    Args:
        limit_bytes: What may live at once; None counts only.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit_bytes
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        # A storage may be freed, and so forgotten, while its thread counts another one.
        self._lock = threading.RLock()
        self.live_bytes = 0
        self._peak = 0

    def take_peak(self) -> int:
        """The most bytes that lived at once since the last call."""
        with self._lock:
            peak, self._peak = self._peak, self.live_bytes
        return peak

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it made.

        Raises:
            OutOfMemory: more than the limit lives now.
        """
        result = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) not in given:
                self._count(storage)
        if self._limit is not None and self.live_bytes > self._limit:
            raise OutOfMemory(
                f"{self.live_bytes} bytes of tensors live at once in {func}, "
                f"but the plan allows {self._limit}"
            )
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        with self._lock:
            if key in self._live:
                return
            self._live[key] = weakref.ref(storage, self._forget(key, size))
            self.live_bytes += size
            self._peak = max(self._peak, self.live_bytes)

    def _forget(self, key: int, size: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            with self._lock:
                del self._live[key]
                self.live_bytes -= size

        return forget


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.device.type != "meta":
            yield leaf.untyped_storage()
