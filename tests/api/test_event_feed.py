"""Many streams share reads, whatever places they are at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from api import event_feed
from api.event_feed import EventFeed
from api.jobs.job_reads import JobReads
from api.jobs.ledger import Ledger, LedgerUnavailable
from api.jobs.record import JobEvent, NewJob
from tests.support.records import new_job


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(event_feed, "GATHER_SECONDS", 0.002)


def event(number: int) -> JobEvent:
    return JobEvent(f"{number}-0", 1.0, "state", {})


class Reads:
    """Events by job, and what was asked."""

    def __init__(self, **events: list[JobEvent]) -> None:
        self.events = events
        self.asked: list[dict[str, str]] = []
        self.failure: Exception | None = None

    async def events_after(
        self, places: Sequence[tuple[str, str]], limit: int
    ) -> dict[str, list[JobEvent]]:
        self.asked.append(dict(places))
        assert len(self.asked[-1]) == len(places)
        if self.failure is not None:
            raise self.failure
        found = {}
        for job, after in places:
            later = [e for e in self.events.get(job, []) if int(e.id[:-2]) > int(after)]
            if later:
                found[job] = later[:limit]
        return found


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_is_there_is_told_at_once_in_one_read() -> None:
    async def scenario() -> None:
        reads = Reads(a=[event(n) for n in range(1, 6)], b=[event(1)])
        feed = EventFeed(reads)
        looks = (("a", "0"), ("a", "3"), ("a", "9"), ("b", "0"), ("c", "0"))
        found = await asyncio.gather(*(feed.look(*look) for look in looks))
        assert [[e.id for e in events] for events in found] == [
            ["1-0", "2-0", "3-0", "4-0", "5-0"],
            ["4-0", "5-0"],
            [],
            ["1-0"],
            [],
        ]
        # One read for all: of each job from the place of whoever is furthest behind.
        assert reads.asked == [{"a": "0", "b": "0", "c": "0"}]

    run(scenario)


def test_whoever_waits_hears_what_happens() -> None:
    async def scenario() -> None:
        reads = Reads(a=[])
        feed = EventFeed(reads)
        waiting = [asyncio.create_task(feed.wait("a", "0", 10)) for _ in range(50)]
        late = asyncio.create_task(feed.wait("a", "7", 10))
        others = [asyncio.create_task(feed.wait(f"b{n}", "0", 10)) for n in range(100)]
        await asyncio.sleep(0.1)
        reads.events["a"].append(event(1))
        for events in await asyncio.gather(*waiting):
            assert [e.id for e in events] == ["1-0"]
        assert not late.done()
        reads.events["a"].append(event(8))
        assert [e.id for e in await late] == ["8-0"]
        assert max(map(len, reads.asked)) == event_feed._JOBS  # commands are bounded
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run(scenario)


def test_nobody_waits_longer_than_asked_and_nothing_is_left() -> None:
    async def scenario() -> None:
        reads = Reads()
        feed = EventFeed(reads)
        assert await feed.wait("a", "0", 0.05) == []
        assert feed._watchers == {}
        gone = asyncio.create_task(feed.wait("a", "0", 10))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert feed._watchers == {}
        assert feed._task is not None
        await feed._task  # it rests
        asked = len(reads.asked)
        await asyncio.sleep(0.1)
        assert len(reads.asked) == asked
        assert await feed.look("a", "0") == []
        await feed.close()

    run(scenario)


def test_long_backlogs_come_in_parts_and_hold_nobody_up() -> None:
    async def scenario() -> None:
        reads = Reads(a=[event(n) for n in range(1, 2 * event_feed.MAX_EVENTS + 2)])
        feed = EventFeed(reads)
        ahead = asyncio.create_task(feed.look("a", str(2 * event_feed.MAX_EVENTS)))
        place, seen = "0", 0
        while events := await feed.look("a", place):
            place, seen = events[-1].id[:-2], seen + len(events)
        assert seen == 2 * event_feed.MAX_EVENTS + 1
        assert len(await ahead) == 1

    run(scenario)


def test_an_outage_is_told_to_all_and_not_kept() -> None:
    async def scenario() -> None:
        reads = Reads(a=[event(1)])
        reads.failure = LedgerUnavailable("down")
        feed = EventFeed(reads)
        waiting = [asyncio.create_task(feed.wait("a", "0", 10)) for _ in range(3)]
        with pytest.raises(LedgerUnavailable):
            await feed.look("a", "0")
        for task in waiting:
            with pytest.raises(LedgerUnavailable):
                await task
        reads.failure = None
        assert len(await feed.look("a", "0")) == 1

    run(scenario)


def test_the_ledger_is_read(ledger: Ledger, redis_url: str) -> None:
    jobs: list[NewJob] = [new_job(), new_job("job_b")]
    for job in jobs:
        ledger.create(job)
    first = ledger.events(jobs[0].id)
    ledger.request_cancel(jobs[0].id)

    async def scenario() -> None:
        reads = JobReads(redis_url, ledger._namespace)
        places = [(jobs[0].id, first[0].id), (jobs[1].id, "0"), ("job_none", "0")]
        found = await reads.events_after(places, 10)
        assert found == {
            jobs[0].id: ledger.events(jobs[0].id, first[0].id),
            jobs[1].id: ledger.events(jobs[1].id),
        }
        assert [e.data["state"] for e in found[jobs[0].id]] == ["cancelled"]
        assert len((await reads.events_after([(jobs[0].id, "0")], 1))[jobs[0].id]) == 1
        await reads.close()

    run(scenario)
