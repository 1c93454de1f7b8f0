"""Many who ask for the same at once are given one answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from api.shared_reads import SharedReads


def test_one_read_for_all_who_ask_meanwhile() -> None:
    asked: list[int] = []
    go_on = threading.Event()

    def read() -> int:
        asked.append(len(asked))
        go_on.wait(10)
        return asked[-1]

    async def scenario() -> None:
        shared = SharedReads()
        waiting = [asyncio.create_task(shared.get("a", 0.2, read)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the one who asked first leaves
        go_on.set()
        assert await asyncio.gather(*waiting[1:]) == [0, 0, 0, 0]
        assert await shared.get("b", 0.2, read) == 1  # another question
        while await shared.get("a", 0.0, read) == 0:  # until the answer is old
            await asyncio.sleep(0.02)
        assert asked == [0, 1, 2]
        await asyncio.sleep(0.05)
        assert shared._found.keys() <= {"b"}

    asyncio.run(scenario())


def test_a_failure_is_told_to_all_and_not_kept() -> None:
    answers = iter([OSError("down"), None])

    def read() -> str:
        failure = next(answers)
        if failure is not None:
            raise failure
        return "up"

    async def scenario() -> None:
        shared = SharedReads()
        both = [asyncio.create_task(shared.get("a", 0.0, read)) for _ in range(2)]
        for task in both:
            with pytest.raises(OSError, match="down"):
                await task
        await asyncio.sleep(0.05)
        assert await shared.get("a", 0.0, read) == "up"

    asyncio.run(scenario())
