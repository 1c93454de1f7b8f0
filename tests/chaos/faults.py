"""What goes wrong: each fault is a function that breaks something and says what.

None is returned where there was nothing to break; that does not count. Whatever is broken for a
while is mended by `Arena.tend`, and whatever has ended is started again by it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress

from strucprune_core.client import ClientError
from tests.chaos.arena import LEASE_SECONDS, Arena
from tests.chaos.orders import Customers, Order, job_spec

Fault = Callable[[Arena, Customers, random.Random], str | None]

_CLOCK_SECONDS = (-86_400.0, -90.0, -5.0, 5.0, 90.0, 86_400.0)
_GREEDY_JOBS = 12
# How long a fault waits for the moment that it is meant for.
_MOMENT_SECONDS = 3.0


def kill_solve(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """SIGKILL to a process that prunes."""
    running = [(name, arena.solve(name)) for name in _workers(arena)]
    found = [(name, pid) for name, pid in running if pid is not None]
    if not found:
        return None
    name, pid = draw.choice(found)
    arena.kill(pid)
    return f"the solve of {name}"


def kill_supervisor(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """SIGKILL to the process that watches a solve."""
    name = draw.choice(_workers(arena))
    pid = arena.supervisor(name)
    if pid is None:
        return None
    arena.kill(pid)
    return name


def kill_helper(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """SIGKILL to some process of a worker that helps with another one's job."""
    deadline = time.monotonic() + _MOMENT_SECONDS
    found = arena.helpers()
    while not found and customers.may_be_helped() and time.monotonic() < deadline:
        arena.tend()
        time.sleep(0.05)
        found = arena.helpers()
    if not found:
        return None
    name = draw.choice(found)
    # Main process, supervisor, tether and solve.
    arena.kill(draw.choice(arena.tree(name)))
    return name


def kill_worker(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """SIGKILL to a worker's main process; what it has started must notice by itself."""
    name = draw.choice(_workers(arena))
    arena.kill(arena.process(name).pid)
    return name


def drain_worker(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """SIGTERM to a worker: it gives its job back."""
    name = draw.choice(_workers(arena))
    arena.process(name).terminate()
    return name


def kill_api(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """SIGKILL to the API, perhaps between two steps of a submission."""
    arena.kill(arena.process("api").pid)
    return ""


def kill_reconciler(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """SIGKILL to the reconciler, perhaps in the middle of a rebuild."""
    arena.kill(arena.process("reconciler").pid)
    return ""


def restart_broker(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """Valkey is killed, and comes back with its data."""
    seconds = draw.uniform(0.0, 1.5)
    arena.restart_broker(seconds)
    return f"down for {seconds:.1f} s"


def flush(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """FLUSHALL."""
    arena.flush()
    return ""


def drop_doorbells(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """Doorbells are lost."""
    return "" if arena.drop_doorbells() else None


def double_doorbells(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """There are more doorbells than jobs."""
    rung = [arena.ring() for _ in range(draw.randint(1, 4))]
    return f"{sum(rung)} times" if any(rung) else None


def zombie(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """A worker sleeps past its lease, if possible when about to publish, and then goes on."""
    _late_job(arena, customers, draw)
    found = [name for name in _workers(arena) if arena.solve(name) is not None]
    if not found:
        return None
    name = draw.choice(found)
    seconds = LEASE_SECONDS + draw.uniform(0.5, 5.0)
    arena.freeze(name, seconds)
    return f"{name} for {seconds:.1f} s"


def cancel_late(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """A cancellation races with the commit."""
    order = _late_job(arena, customers, draw)
    if order is None:
        return None
    time.sleep(draw.uniform(0.0, 0.5))
    return f"job {order.name}" if customers.cancel(order) else None


def cut_storage(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """The object store cannot be reached for a while."""
    seconds = draw.uniform(0.5, 8.0)
    arena.cut_storage(seconds)
    return f"for {seconds:.1f} s"


def break_transfers(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """Answers of the object store break off in the middle."""
    after_bytes = [draw.randrange(4000) for _ in range(draw.randint(1, 6))]
    arena.storage.cut(*after_bytes)
    return f"{len(after_bytes)} connections"


def fill_scratch(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """A worker's disk is full for a while."""
    name, seconds = draw.choice(_workers(arena)), draw.uniform(1.0, 5.0)
    arena.fill_scratch(name, seconds)
    return f"{name} for {seconds:.1f} s"


def jump_clock(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """The clock of a process jumps; processes disagree about the time from then on."""
    name, seconds = draw.choice(arena.names), draw.choice(_CLOCK_SECONDS)
    arena.set_clock(name, seconds)
    return f"{name} by {seconds:+.0f} s"


def fill_redis(arena: Arena, customers: Customers, draw: random.Random) -> str:
    """Valkey has no memory left for a while."""
    seconds = draw.uniform(1.0, 2 * LEASE_SECONDS)
    arena.fill_redis(seconds)
    return f"for {seconds:.1f} s"


def greedy_tenant(arena: Arena, customers: Customers, draw: random.Random) -> str | None:
    """Another tenant submits all that it may, urgent and for many workers, and cancels it later."""
    submitted: list[str] = []
    with arena.greedy() as client, suppress(ClientError):
        for _ in range(_GREEDY_JOBS):
            spec = job_spec("threshold", f"greedy-{draw.getrandbits(48):x}", 64)
            spec["runtime"]["priority"] = "high"
            submitted.append(client.submit(spec).id)

    def cancel() -> None:
        with arena.greedy() as client:
            for job_id in submitted:
                with suppress(ClientError):  # it is over, or the API is down
                    client.cancel(job_id)

    arena.repair_after(draw.uniform(5.0, 10.0), cancel)
    return f"with {len(submitted)} jobs" if submitted else None


FAULTS: tuple[Fault, ...] = (
    kill_solve,
    kill_supervisor,
    kill_helper,
    kill_worker,
    drain_worker,
    kill_api,
    kill_reconciler,
    restart_broker,
    flush,
    drop_doorbells,
    double_doorbells,
    zombie,
    cancel_late,
    cut_storage,
    break_transfers,
    fill_scratch,
    jump_clock,
    fill_redis,
    greedy_tenant,
)


def _workers(arena: Arena) -> list[str]:
    return [name for name in arena.names if name.startswith("worker-")]


def _late_job(arena: Arena, customers: Customers, draw: random.Random) -> Order | None:
    """A job that is about to be published, or any open one if there is none for long."""
    deadline = time.monotonic() + _MOMENT_SECONDS
    while not customers.late() and time.monotonic() < deadline:
        arena.tend()
        time.sleep(0.05)
    found = customers.late() or customers.open_orders()
    return draw.choice(found) if found else None
