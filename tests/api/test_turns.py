"""Places are given to tenants in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from api.problems import ApiError
from api.turns import Turns


async def settle() -> None:
    """Let every task go on until it waits: each step of the loop runs all that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


class Floor:
    """Work that lasts until it is told to end, in the order in which it began."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def work(self, name: str) -> None:
        tenant = name.rstrip("0123456789")
        self._ends[name] = asyncio.Event()
        async with self._turns.turn(tenant):
            self.began.append(name)
            await self._ends[name].wait()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


def test_tenants_take_turns() -> None:
    async def scenario() -> None:
        floor = Floor(Turns(places=2, per_tenant=1, waiting=9))
        names = ["a1", "a2", "a3", "b1", "c1", "b2"]
        tasks = [asyncio.create_task(floor.work(name)) for name in names]
        await settle()
        # One place each, although a was first three times.
        assert floor.began == ["a1", "b1"]
        await floor.end("b1")
        assert floor.began == ["a1", "b1", "c1"]  # a has its place still; c before b's second
        await floor.end("a1")
        assert floor.began[3:] == ["a2"]
        await floor.end("c1")
        assert floor.began[4:] == ["b2"]
        await floor.end("a2")
        assert floor.began[5:] == ["a3"]
        for name in names:
            await floor.end(name)
        await asyncio.gather(*tasks)

    run(scenario)


def test_one_tenant_leaves_places_to_others() -> None:
    async def scenario() -> None:
        floor = Floor(Turns(places=3, per_tenant=2, waiting=100))
        tasks = [asyncio.create_task(floor.work(f"a{number}")) for number in range(50)]
        await settle()
        tasks.append(asyncio.create_task(floor.work("b0")))
        await settle()
        assert floor.began == ["a0", "a1", "b0"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario)


def test_who_waits_in_vain_is_refused_or_leaves() -> None:
    async def scenario() -> None:
        turns = Turns(places=1, per_tenant=1, waiting=2)
        floor = Floor(turns)
        tasks = [asyncio.create_task(floor.work(f"a{number}")) for number in range(3)]
        await settle()
        with pytest.raises(ApiError) as caught:
            await floor.work("a9")
        assert (caught.value.status_code, caught.value.code) == (429, "too_many_at_once")
        assert caught.value.headers is not None
        assert caught.value.headers["Retry-After"].isdigit()
        tasks[1].cancel()  # its client has gone
        await settle()
        await floor.end("a0")
        assert floor.began == ["a0", "a2"]
        await floor.end("a2")
        await asyncio.gather(*tasks, return_exceptions=True)
        # Nothing is left over, nor remembered of anybody.
        assert not turns._waiting
        assert not turns._working
        async with turns.turn("b"):
            pass

    run(scenario)


def test_a_place_that_comes_with_a_cancellation_is_not_lost() -> None:
    async def scenario() -> None:
        turns = Turns(places=1, per_tenant=1, waiting=9)
        floor = Floor(turns)
        first, second, third = (
            asyncio.create_task(floor.work(name)) for name in ("a1", "a2", "b1")
        )
        await settle()
        floor._ends["a1"].set()
        await asyncio.sleep(0)  # the first leaves; the place is given on
        second.cancel()
        await settle()
        assert "b1" in floor.began
        await floor.end("b1")
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert not turns._working

    run(scenario)
