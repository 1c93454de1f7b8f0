"""Reads that many wait for at once, done once: hundreds of watchers cost as much as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

_T = TypeVar("_T")


class SharedReads:
    """Shares what was just read. For one event loop."""

    def __init__(self) -> None:
        self._found: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, key: Hashable, seconds: float, read: Callable[[], _T]) -> _T:
        """What `read` returns or raises; it is called in a thread.

        Args:
            key: Who asks under the same key is content with the same answer.
            seconds: For so long after it was asked for, the answer is given to others too.
            read: Blocks.
        """
        task = self._found.get(key)
        if task is None:
            task = asyncio.ensure_future(run_in_threadpool(read))
            self._found[key] = task
            task.get_loop().call_later(seconds, self._forget, key, task)
        # Whoever asked first may leave; the others wait on.
        answer: _T = await asyncio.shield(task)
        return answer

    def _forget(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if task.done():
            del self._found[key]
        else:
            # Nobody is to ask a slow service once more meanwhile.
            task.add_done_callback(lambda _: self._found.pop(key, None))
