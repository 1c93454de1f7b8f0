"""New events of many jobs, read together: a thousand event streams cost a few reads a second.

All streams of a job share one read, wherever in its events they are, and jobs share commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from api.jobs.record import JobEvent

POLL_SECONDS = 0.5
# A new stream is served at once, together with others that come within this time.
GATHER_SECONDS = 0.02
# Events of a job and jobs in one command: an answer stays below some megabytes.
MAX_EVENTS = 200
_JOBS = 64


class EventReads(Protocol):
    """Reads events of several jobs at once."""

    async def events_after(
        self, places: Sequence[tuple[str, str]], limit: int
    ) -> dict[str, list[JobEvent]]:
        """Events of each job after the event given with its id, oldest first."""


@dataclass(eq=False)
class _Watcher:
    """A request that waits for events.

    Attributes:
        after: The last event that it has.
        once: Whether one read is enough, also if it finds no events.
        found: Resolved with the events.
    """

    after: str
    once: bool
    found: asyncio.Future[list[JobEvent]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class EventFeed:
    """New events of jobs. For one event loop. Reads only while a request waits."""

    def __init__(self, reads: EventReads) -> None:
        self._reads = reads
        self._watchers: dict[str, set[_Watcher]] = {}
        self._new: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    async def look(self, job_id: str, after: str) -> list[JobEvent]:
        """Events of a job that exist already, perhaps none.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        return await self._wait(job_id, _Watcher(after, once=True), None)

    async def wait(self, job_id: str, after: str, seconds: float) -> list[JobEvent]:
        """Events of a job as soon as there are any; none after this many seconds.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        return await self._wait(job_id, _Watcher(after, once=False), seconds)

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _wait(self, job_id: str, watcher: _Watcher, seconds: float | None) -> list[JobEvent]:
        self._watchers.setdefault(job_id, set()).add(watcher)
        if watcher.once:
            self._new.add(job_id)
            self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            done, _ = await asyncio.wait([watcher.found], timeout=seconds)
            return watcher.found.result() if done else []
        finally:
            watcher.found.cancel()  # a result that comes later is not wanted
            watching = self._watchers.get(job_id, set())
            watching.discard(watcher)
            if not watching:
                self._watchers.pop(job_id, None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        everything_at = loop.time() + POLL_SECONDS
        while self._watchers:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(everything_at):
                    await self._woken.wait()
                    await asyncio.sleep(GATHER_SECONDS)
            self._woken.clear()
            new, self._new = self._new, set()
            if loop.time() >= everything_at:
                everything_at = loop.time() + POLL_SECONDS
                new = set(self._watchers)
            jobs = sorted(new)
            for start in range(0, len(jobs), _JOBS):
                await self._look_at(jobs[start : start + _JOBS])

    async def _look_at(self, jobs: Sequence[str]) -> None:
        # A copy: a watcher that comes during the read may want events that it does not cover.
        watching = {job: list(self._watchers.get(job, ())) for job in jobs}
        places = [
            (job, min((watcher.after for watcher in watchers), key=_position))
            for job, watchers in watching.items()
            if watchers
        ]
        try:
            found = await self._reads.events_after(places, MAX_EVENTS) if places else {}
        except Exception as error:
            for watchers in watching.values():
                _fail(watchers, error)
            return
        for job, watchers in watching.items():
            _deliver(watchers, found.get(job, []))


def _deliver(watchers: Sequence[_Watcher], events: list[JobEvent]) -> None:
    for watcher in watchers:
        place = _position(watcher.after)
        later = [event for event in events if _position(event.id) > place]
        # A full answer may end before the place of a watcher that is ahead, so it proves nothing.
        complete = len(events) < MAX_EVENTS
        if not watcher.found.done() and (later or (watcher.once and complete)):
            watcher.found.set_result(later)


def _fail(watchers: Sequence[_Watcher], error: Exception) -> None:
    for watcher in watchers:
        if not watcher.found.done():
            watcher.found.set_exception(error)


def _position(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)
