"""One run: undisturbed jobs to compare with, then faults, then peace, then the verdict."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.arena import Arena
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.judge import Result, Verdict, judge, result_of
from tests.chaos.orders import Customers, job_spec

# Between faults, on average; workers need a few seconds to come back and to get anywhere.
MEAN_PAUSE_SECONDS = 1.5
# Without any change for so long, with nothing broken, jobs are stuck.
STUCK_SECONDS = 120.0
# Of the faults, while there is one job at a time, which idle workers help with.
_SHARE_ALONE = 0.3
# How long such a fault waits for somebody to help.
HELP_SECONDS = 8.0
_TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        faults: How often each was injected.
        jobs: How many were submitted.
        shared: How many of them several workers might serve.
        helped: How many of these were seen to be served by several at a time.
        ends: In which states they ended.
    """

    faults: Counter[str]
    jobs: int
    shared: int
    helped: int
    ends: Counter[str]
    verdict: Verdict

    @property
    def line(self) -> str:
        """The last line of a report."""
        found = self.verdict
        return (
            f"faults={self.faults.total()} lost={len(found.lost)} "
            f"duplicated={len(found.duplicated)} corrupted={len(found.corrupted)} "
            f"stuck={len(found.stuck)}"
        )


def run(
    directory: Path,
    *,
    seed: str,
    faults: int,
    kinds: list[str],
    at_once: int,
    workers: int,
    mean_pause_seconds: float = MEAN_PAUSE_SECONDS,
    help_seconds: float = HELP_SECONDS,
    tell: Callable[[str], None],
) -> Outcome:
    """Inject so many faults, and judge.

    Args:
        directory: For data and logs.
        seed: Of all choices; what the processes make of them is up to their timing.
        faults: How many.
        kinds: Of jobs; of the last one are those that are alone.
        at_once: Jobs that are open at a time, after a while in which there is one.
        workers: Worker processes.
        mean_pause_seconds: Between faults.
        help_seconds: While jobs are alone, how long each fault waits for somebody to help.
        tell: Gets a line for each thing that happens.
    """
    began = time.monotonic()

    def note(line: str) -> None:
        tell(f"{time.monotonic() - began:7.1f} s  {line}")

    with Arena(directory, workers) as arena, arena.client() as client:
        note("the arena is ready")
        twins = _undisturbed(arena, kinds)
        note(f"undisturbed jobs are done: {', '.join(kinds)}")
        customers = Customers(arena, kinds, at_once, seed)
        customers.start()
        counted: Counter[str] = Counter()
        try:
            draw = random.Random(f"{seed} faults")
            sequence = _sequence(draw)
            while counted.total() < faults and customers.failure is None:
                _tend_for(arena, draw.expovariate(1 / mean_pause_seconds))
                if counted.total() < _SHARE_ALONE * faults:
                    _await_help(arena, help_seconds)
                else:
                    customers.come_in_crowds()
                fault = next(sequence)
                found = fault(arena, customers, draw)
                if found is not None:
                    counted[fault.__name__] += 1
                    note(f"fault {counted.total()}: {fault.__name__} {found}")
            arena.repair()
            customers.stop_ordering()
            note(f"peace; {len(customers.open_orders())} jobs are open")
            _await(arena, customers)
            if not customers.done:
                arena.ask_where_they_are()
        finally:
            customers.give_up()
        if customers.failure is not None:
            raise RuntimeError("the customers have left") from customers.failure
        verdict = judge(arena, client, customers.orders, twins)
        ends = Counter(order.job.state for order in customers.orders if order.job)
        retries = sum(order.retries for order in customers.orders)
        note(f"{retries} retries by customers, {arena.restarts} processes started again")
        shared = [order for order in customers.orders if order.max_workers > 1]
        helped = sum(order.helped for order in shared)
        return Outcome(counted, len(customers.orders), len(shared), helped, ends, verdict)


def _undisturbed(arena: Arena, kinds: list[str]) -> dict[str, Result]:
    with arena.client() as client:
        jobs = {kind: client.submit(job_spec(kind, f"undisturbed-{kind}")) for kind in kinds}
        for kind, job in jobs.items():
            ended = client.wait(job.id)
            if ended.state != "succeeded":
                raise RuntimeError(f"the undisturbed job {kind} {ended.state}: {ended.error}")
    return {kind: result_of(arena, f"output/undisturbed-{kind}") for kind in kinds}


def _sequence(draw: random.Random) -> Iterator[Fault]:
    """All faults in ever new orders, so that each comes about equally often."""
    while True:
        yield from draw.sample(FAULTS, len(FAULTS))


def _tend_for(arena: Arena, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        arena.tend()
        if time.monotonic() >= until:
            return
        time.sleep(_TICK_SECONDS)


def _await_help(arena: Arena, seconds: float) -> None:
    """Tend the arena until a worker helps with another one's job, but not for ever."""
    until = time.monotonic() + seconds
    while not arena.helpers() and time.monotonic() < until:
        _tend_for(arena, _TICK_SECONDS)


def _await(arena: Arena, customers: Customers) -> None:
    """Tend the arena until all jobs are over, or none gets anywhere."""
    customers.changed_at = time.monotonic()
    while not customers.done and time.monotonic() - customers.changed_at < STUCK_SECONDS:
        _tend_for(arena, _TICK_SECONDS)
