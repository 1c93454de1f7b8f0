"""The whole product as real processes, made to be broken: what ends is started again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from api.jobs.doorbell import QUEUE, Doorbell
from embedded.processes import ManagedProcess
from embedded.stack import ROOT, WORK_BUCKET, Stack
from strucprune_core.client import StrucPruneClient
from tests.chaos.interference.sitecustomize import CLOCK, FULL
from tests.support import full_redis
from tests.support.flaky_proxy import FlakyProxy
from tests.support.processes import descendants
from tests.support.text import make_text
from tests.support.tiny_llama import make_tiny_llama

# The tenant that wants everything.
GREEDY = "greedy"
MODEL, DEEP_MODEL = "model", "deep-model"
LEASE_SECONDS = 3.0
# Everything that heals, within seconds; as many attempts as there may be.
SETTINGS: Mapping[str, str] = {
    "STRUCPRUNE_LEASE_SECONDS": str(LEASE_SECONDS),
    "STRUCPRUNE_HEARTBEAT_SECONDS": "0.7",
    "STRUCPRUNE_PROGRESS_SECONDS": "0.2",
    "STRUCPRUNE_SIGNAL_SECONDS": "0.2",
    "STRUCPRUNE_CANCEL_GRACE_SECONDS": "1",
    "STRUCPRUNE_RECONCILE_EVERY_SECONDS": "0.3",
    "STRUCPRUNE_REQUEUE_AFTER_SECONDS": "1",
    "STRUCPRUNE_REBUILD_EVERY_SECONDS": "5",
    "STRUCPRUNE_TENANT_LIMITS": json.dumps({GREEDY: {"kept_jobs": 20}}),
}
_INTERFERENCE = Path(__file__).parent / "interference"


class Arena(Stack):
    """The stack with some workers, and with ways to break each part of it.

    Args:
        directory: Data and logs.
        workers: How many.

    Attributes:
        storage: What stands between API, reconciler, workers and their object store.
        restarts: How often something that had ended was started again.
    """

    def __init__(self, directory: Path, workers: int) -> None:
        super().__init__(directory, workers=workers, settings=SETTINGS, tenants=[GREEDY])
        self.storage = FlakyProxy(self.s3.port)
        self.restarts = 0
        self._doorbell = Doorbell(self.valkey.url)
        # Repairs of what was broken for a while: when, and how.
        self._repairs: list[tuple[float, Callable[[], None]]] = []

    @property
    def environment(self) -> dict[str, str]:
        """As the stack's, with the proxy before the object store."""
        proxy = f"http://127.0.0.1:{self.storage.port}"
        return {**super().environment, "STRUCPRUNE_S3_ENDPOINT_URL": proxy}

    def environment_of(self, name: str) -> dict[str, str]:
        """With a clock and a disk of its own for each process."""
        scratch = self.control(name) / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join((str(_INTERFERENCE), str(ROOT)))
        return {
            **super().environment_of(name),
            "PYTHONPATH": path,
            "CHAOS_CONTROL": str(self.control(name)),
            "TMPDIR": str(scratch),
            "STRUCPRUNE_SCRATCH_DIRECTORY": str(scratch),
        }

    def greedy(self) -> StrucPruneClient:
        """A client of the greedy tenant, which tries nothing twice."""
        return StrucPruneClient(self.api_url, self.api_keys[GREEDY], retry_seconds=0)

    def control(self, name: str) -> Path:
        """Directory by which a process is told how to misbehave."""
        return self._directory / "control" / name

    def start(self) -> None:
        """Start everything, with two tiny models and a text in the bucket."""
        self.storage.__enter__()
        super().start()
        s3 = self.s3.client()
        for name, layers in ((MODEL, 2), (DEEP_MODEL, 8)):
            model = make_tiny_llama(
                self._directory / name, layers=layers, hidden=32, intermediate=64
            )
            for path in model.iterdir():
                s3.upload_file(str(path), WORK_BUCKET, f"{name}/{path.name}")
        s3.put_object(Bucket=WORK_BUCKET, Key="text.txt", Body=make_text().encode())

    def stop(self) -> None:
        """Stop everything, whatever state it is in."""
        self.repair()
        self._doorbell.close()
        super().stop()
        self.storage.__exit__()

    @property
    def names(self) -> list[str]:
        """All processes of ours."""
        return ["api", "reconciler", *(f"worker-{number}" for number in range(len(self.workers)))]

    def process(self, name: str) -> ManagedProcess:
        """One of them."""
        if name.startswith("worker-"):
            return self.workers[int(name.removeprefix("worker-"))]
        found = self.api if name == "api" else self.reconciler
        if found is None:
            raise RuntimeError("the arena has not been started")
        return found

    def tree(self, worker: str) -> list[int]:
        """Process ids of a worker: main process, supervisor, and the solve if there is one."""
        pid = self.process(worker).pid
        return [pid, *descendants(pid)]

    def solve(self, worker: str) -> int | None:
        """Process id of a worker's solve, if it runs one."""
        for pid in self.tree(worker):
            if b"worker.solve" in _command(pid):
                return pid
        return None

    def supervisor(self, worker: str) -> int | None:
        """Process id of the child of a worker's main process that watches solves."""
        children = descendants(self.process(worker).pid)
        return children[0] if children else None

    def helpers(self) -> list[str]:
        """Workers whose solve is for a job that another one leads."""
        leaders = self._leaders()
        return [
            name
            for name in self.names
            if name.startswith("worker-")
            and self.supervisor(name) not in leaders
            and self.solve(name) is not None
        ]

    def _leaders(self) -> set[int]:
        """Process ids of the supervisors that hold a job's lease."""
        with redis.Redis.from_url(self.valkey.url, decode_responses=True) as ledger:
            held: Any = ledger.zrange("strucprune:leases", 0, -1)
            owners: Any = [
                ledger.hget(f"strucprune:job:{job_id}", "lease_owner") for job_id in held
            ]
        return {int(owner.rpartition(":")[2]) for owner in owners if owner}

    def kill(self, pid: int) -> None:
        """SIGKILL, whether or not the process is still there."""
        _signal(pid, signal.SIGKILL)

    def ask_where_they_are(self) -> None:
        """Have every solve log the place in the program that it is at."""
        for name in self.names:
            pid = self.solve(name) if name.startswith("worker-") else None
            if pid is not None:
                _signal(pid, signal.SIGUSR1)

    def freeze(self, worker: str, seconds: float) -> None:
        """Stop a worker with all that it runs, in the middle of whatever it does."""
        pids = self.tree(worker)
        for pid in pids:
            _signal(pid, signal.SIGSTOP)

        def go_on() -> None:
            for pid in pids:
                _signal(pid, signal.SIGCONT)

        self.repair_after(seconds, go_on)

    def cut_storage(self, seconds: float) -> None:
        """Let nothing through to the object store for a while."""
        self.storage.down = True

        def restore() -> None:
            self.storage.down = False

        self.repair_after(seconds, restore)

    def fill_scratch(self, worker: str, seconds: float) -> None:
        """Let a worker's disk be full for a while."""
        flag = self.control(worker) / FULL
        flag.touch()
        self.repair_after(seconds, lambda: flag.unlink(missing_ok=True))

    def fill_redis(self, seconds: float) -> None:
        """Let Valkey refuse all that takes memory for a while."""
        with redis.Redis.from_url(self.valkey.url) as connection:
            full_redis.fill(connection)

        def give_memory() -> None:
            with redis.Redis.from_url(self.valkey.url) as connection:
                full_redis.mend(connection)

        self.repair_after(seconds, give_memory)

    def repair_after(self, seconds: float, repair: Callable[[], None]) -> None:
        """Mend something that is broken after so long, or with all else."""
        self._repairs.append((time.monotonic() + seconds, repair))

    def set_clock(self, name: str, seconds: float) -> None:
        """Let a process's clock be off from now on."""
        path = self.control(name) / CLOCK
        path.with_suffix(".new").write_text(str(seconds))
        path.with_suffix(".new").rename(path)

    def restart_broker(self, down_seconds: float) -> None:
        """Kill Valkey; it comes back with what it had written."""
        self.valkey.kill()
        time.sleep(down_seconds)
        self.valkey.start()

    def flush(self) -> None:
        """Everything in Valkey is gone: ledger, broker, schedules."""
        with redis.Redis.from_url(self.valkey.url) as connection:
            connection.flushall()

    def drop_doorbells(self) -> bool:
        """Take away all messages that no worker has taken yet. False if there were none."""
        with redis.Redis.from_url(self.valkey.url) as connection:
            return bool(connection.delete(QUEUE))

    def ring(self) -> bool:
        """Ring once more than there are jobs."""
        return self._doorbell.ring()

    def tend(self) -> None:
        """What an init system would do: start what has ended, and do the repairs that are due."""
        now = time.monotonic()
        due = [repair for at, repair in self._repairs if at <= now]
        self._repairs = [entry for entry in self._repairs if entry[0] > now]
        for repair in due:
            repair()
        for name in self.names:
            if not self.process(name).running:
                self._restart(name)

    def repair(self) -> None:
        """Mend everything at once."""
        for _, repair in self._repairs:
            repair()
        self._repairs = []
        for name in self.names:
            self.set_clock(name, 0.0)

    def _restart(self, name: str) -> None:
        self.process(name).kill()  # what it has left behind in its group
        self.restarts += 1
        if name == "api":
            self.api = self._module(name, "api")
        elif name == "reconciler":
            self.reconciler = self._module(name, "api.reconciler")
        else:
            self.workers[int(name.removeprefix("worker-"))] = self._module(name, "worker")


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
