"""One task at a time beside the thread that computes: storing what the last unit made. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

from strucprune_core.errors import Stopped

T = TypeVar("T")

# How often a caller that waits is called back.
WAIT_SECONDS = 0.5


class Background(Generic[T]):
    """A thread for one task at a time. A context manager; and a stop signal, see `check`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "background")
        self._task: Future[T] | None = None
        self._abandoned = threading.Event()
        self._ticked = 0

    def start(self, task: Callable[[], T]) -> None:
        """Begin a task. The one before must have been seen through with `result`."""
        self._task = self._pool.submit(task)

    def check(self) -> None:
        """Raise what the task has failed with, if it has: no use to go on then."""
        if self._task is not None and self._task.done():
            self._task.result()

    def result(self, waiting: Callable[[int], None]) -> T:
        """What the task returns, or raises, once it has ended.

        Args:
            waiting: Called now and then meanwhile with what the task last gave to `tick`; what it
                raises does not end the task.
        """
        if self._task is None:
            raise LookupError("no task was begun")
        while not wait([self._task], WAIT_SECONDS).done:
            waiting(self._ticked)
        task, self._task = self._task, None
        return task.result()

    @property
    def is_busy(self) -> bool:
        """Whether a task was begun that was not seen through yet."""
        return self._task is not None

    def abandon(self) -> None:
        """Have the task end at its next `tick`."""
        self._abandoned.set()

    def tick(self, done: int) -> None:
        """Called by the task now and then: `storage.store.Tick`.

        Raises:
            Stopped: the task was abandoned.
        """
        self._ticked = done
        if self._abandoned.is_set():
            raise Stopped("what was being stored is abandoned")

    def __enter__(self) -> Background[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:  # Whoever was waiting for it does so no more.
            self.abandon()
        self._pool.shutdown()
