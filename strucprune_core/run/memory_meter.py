"""Peak memory of the running process, measured and not planned.

Host memory is anonymous resident memory: what the process itself holds. File-backed pages (the
page cache behind memory-mapped scratch files, the interpreter's and torch's libraries) are left
out, since the kernel may drop them at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from strucprune_core.run.tensor_bytes import TensorBytes

SAMPLE_SECONDS = 0.01  # A peak shorter than this can be missed.
_STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process in bytes; its peak RSS where /proc is missing."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def return_free_memory() -> None:
    """Give freed heap memory back to the system, where the C library can (glibc).

    Without it a process keeps what its largest step once needed, and each later step's peak would
    be reported too high.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class MemoryMeter:
    """Samples the process's memory in a thread while the context of `running` is open.

    Args:
        device: Where tensors visit.
        device_limit_bytes: What may be held there; more is an error of the allocator. On the CPU
            live tensors are counted for it, which is not done without a limit: it takes time.
    """

    def __init__(self, device: torch.device, device_limit_bytes: int | None = None) -> None:
        self._device = device
        self._limit = device_limit_bytes
        self._tensors: TensorBytes | None = None
        if device_limit_bytes is not None and device.type == "cpu":
            self._tensors = TensorBytes(device_limit_bytes)
        self._peak = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[MemoryMeter]:
        """Measure while the context is open."""
        self._limit_device()
        thread = threading.Thread(target=self._sample, name="memory-meter", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def take_host_peak(self) -> int:
        """Peak bytes since the last call."""
        with self._lock:
            peak, self._peak = max(self._peak, anonymous_bytes()), 0
        return peak

    def take_device_peak(self) -> int | None:
        """Peak bytes allocated on the device since the last call; None if nobody counts them."""
        if self._tensors is not None:
            return self._tensors.take_peak()
        if self._device.type != "cuda":
            return None
        peak = int(torch.cuda.max_memory_allocated(self._device))
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def counting(self) -> contextlib.AbstractContextManager[object]:
        """Count the tensors made in this context, in this thread, if they must be counted here."""
        return contextlib.nullcontext() if self._tensors is None else self._tensors

    def _limit_device(self) -> None:
        if self._limit is not None and self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            share = min(1.0, self._limit / total)
            torch.cuda.set_per_process_memory_fraction(share, self._device)

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            # Read with the lock held: a sample counts where it was taken, not one call later.
            with self._lock:
                self._peak = max(self._peak, anonymous_bytes())
