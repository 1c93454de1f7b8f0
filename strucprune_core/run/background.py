"""Tasks beside the thread that computes, one after another: storing what units made. No torch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

from strucprune_core.errors import Stopped

T = TypeVar("T")

# How often a caller that waits is called back.
WAIT_SECONDS = 0.5


class Background(Generic[T]):
    """A thread that does tasks in order. A context manager; and a stop signal, see `check`.

    Once a task has failed, those behind it are not begun: they may build on it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "background")
        self._tasks: deque[Future[T]] = deque()
        self._failed = False
        self._abandoned = threading.Event()
        self._ticked = 0

    def start(self, task: Callable[[], T]) -> None:
        """Begin a task once those before it are done. `result` sees it through."""
        self._tasks.append(self._pool.submit(self._run, task))

    def _run(self, task: Callable[[], T]) -> T:
        if self._failed:
            raise Stopped("what it builds on was not stored")
        try:
            return task()
        except BaseException:
            self._failed = True
            raise

    def check(self) -> None:
        """Raise what a task has failed with, if one has: no use to go on then."""
        if self._failed:
            for task in self._tasks:
                if task.done():
                    task.result()

    def result(self, waiting: Callable[[int], None]) -> T:
        """What the first task returns, or raises, once it has ended. It is forgotten then.

        Args:
            waiting: Called now and then meanwhile with what the task last gave to `tick`; what it
                raises does not end the task.
        """
        if not self._tasks:
            raise LookupError("no task was begun")
        while not wait([self._tasks[0]], WAIT_SECONDS).done:
            waiting(self._ticked)
        task = self._tasks.popleft()
        try:
            return task.result()
        finally:
            self._failed = self._failed and bool(self._tasks)

    @property
    def is_over(self) -> bool:
        """Whether the first task has ended, or there is none."""
        return not self._tasks or self._tasks[0].done()

    @property
    def is_busy(self) -> bool:
        """Whether there is a task that was not seen through yet."""
        return bool(self._tasks)

    def abandon(self) -> None:
        """Have tasks end at their next `tick`."""
        self._abandoned.set()

    def tick(self, done: int) -> None:
        """Called by a task now and then: `storage.store.Tick`.

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
        if self._tasks:  # Whoever was waiting for them does so no more.
            self.abandon()
        self._pool.shutdown()
