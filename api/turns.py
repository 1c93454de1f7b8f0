"""Places for work, given to tenants in turn: a tenant with many requests delays only its own.

A request that waits holds its connection, but no thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.problems import ApiError, too_many


class Turns:
    """A number of places. For one event loop.

    Args:
        places: How many requests may work at once.
        per_tenant: How many of one tenant may.
        waiting: How many of one tenant may wait; more are refused.
    """

    def __init__(self, places: int, per_tenant: int, waiting: int) -> None:
        self._places = places
        self._per_tenant = per_tenant
        self._most_waiting = waiting
        self._working: Counter[str] = Counter()
        # The tenant that was served longest ago is first.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """A place while the context lasts, once it is the tenant's turn.

        Raises:
            ApiError: 429, too many of the tenant's requests wait already.
        """
        await self._enter(tenant)
        try:
            yield
        finally:
            self._leave(tenant)

    async def _enter(self, tenant: str) -> None:
        if tenant not in self._waiting and self._fits(tenant):
            self._working[tenant] += 1
            return
        queue = self._waiting.setdefault(tenant, deque())
        if len(queue) >= self._most_waiting:
            raise self._refused()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave(tenant)  # the place was given in the same moment
            else:
                self._forget(tenant, place)
            raise

    def _fits(self, tenant: str) -> bool:
        return self._working.total() < self._places and self._working[tenant] < self._per_tenant

    def _leave(self, tenant: str) -> None:
        self._working[tenant] -= 1
        if not self._working[tenant]:
            del self._working[tenant]
        self._serve_next()

    def _serve_next(self) -> None:
        while tenant := next((name for name in self._waiting if self._fits(name)), None):
            queue = self._waiting[tenant]
            place = queue.popleft()
            if not place.cancelled():
                self._working[tenant] += 1
                place.set_result(None)
            self._waiting.move_to_end(tenant)
            if not queue:
                del self._waiting[tenant]

    def _forget(self, tenant: str, place: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant)
        if queue is not None and place in queue:
            queue.remove(place)
            if not queue:
                del self._waiting[tenant]

    def _refused(self) -> ApiError:
        return too_many(
            "too_many_at_once",
            f"Your organisation has {self._per_tenant} requests of this kind in progress and "
            f"{self._most_waiting} waiting. Send fewer at once.",
        )
