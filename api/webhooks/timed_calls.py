"""Calls with a time limit that cannot be interrupted, such as looking up a host name.

After the time limit the caller goes on, but the thread of the call runs until the system gives up.
Until then the call counts, and an owner with too many of them may make no more.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_T = TypeVar("_T")

# Calls at once: in all, and of one owner.
_AT_ONCE = 64
_PER_OWNER = 4


class TimedCalls:
    """Makes each call in a thread of its own. Safe to share between threads."""

    def __init__(self, at_once: int = _AT_ONCE, per_owner: int = _PER_OWNER) -> None:
        self._at_once = at_once
        self._per_owner = per_owner
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()

    def call(self, owner: str, seconds: float, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, or raise what it raises.

        Raises:
            TimeoutError: `work` takes longer, or too many calls of its owner still run.
        """
        with self._lock:
            if self._running.total() >= self._at_once or self._running[owner] >= self._per_owner:
                raise TimeoutError
            self._running[owner] += 1
        found: Future[_T] = Future()
        # A daemon: the program does not wait for it at its end.
        threading.Thread(target=self._run, args=(owner, work, found), daemon=True).start()
        return found.result(timeout=max(0.0, seconds))

    def _run(self, owner: str, work: Callable[[], _T], found: Future[_T]) -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)
        finally:
            with self._lock:
                self._running[owner] -= 1
                if not self._running[owner]:
                    del self._running[owner]
