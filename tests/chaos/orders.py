"""Customers of the arena: they submit jobs, look at them, retry what failed for want of luck."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from embedded.stack import STATE_BUCKET, WORK_BUCKET
from strucprune_core.client import ClientError, Job, StrucPruneClient
from tests.chaos.arena import DEEP_MODEL, MODEL, Arena


@dataclass(frozen=True)
class Kind:
    """What a job does.

    Attributes:
        pruning: Its section of that name.
        model: Name of the model in the bucket.
        samples: Sequences of calibration.
    """

    pruning: dict[str, Any]
    model: str = MODEL
    samples: int = 8


# Each is run once undisturbed, by one worker, to compare with.
KINDS: dict[str, Kind] = {
    "threshold": Kind({"sparsity": 0.3}),
    "uniform": Kind({"sparsity": 0.25, "layout": "uniform", "allocation": "uniform"}),
    "heads": Kind({"sparsity": 0.3, "structures": ["ffn_channels", "query_heads"]}),
    # Long enough for workers that help to come and to do something.
    "deep": Kind({"sparsity": 0.3}, model=DEEP_MODEL, samples=64),
}
# How many workers may serve a job: of one that is alone, and of one among many.
_WORKERS_ALONE = (2, 3)
_WORKERS_IN_A_CROWD = (1, 1, 2, 3)
LATE_PHASES = frozenset({"evaluating", "uploading", "committing"})
_LOOK_SECONDS = 0.2
_RETRIES = 10
# Longer than anything stays broken.
_PATIENCE_SECONDS = 180.0


def job_spec(kind: str, name: str, max_workers: int = 1) -> dict[str, Any]:
    """A job of this kind, whose output and label bear the name."""
    uri, what = f"s3://{WORK_BUCKET}", KINDS[kind]
    return {
        "model": {"uri": f"{uri}/{what.model}"},
        "output": {"uri_prefix": f"{uri}/output/{name}"},
        "pruning": what.pruning,
        "calibration": {"uri": f"{uri}/text.txt", "samples": what.samples, "sequence_length": 32},
        "evaluation": {"uri": f"{uri}/text.txt", "sequences": 2, "sequence_length": 32},
        "runtime": {"device": "cpu", "max_attempts": 20, "max_workers": max_workers},
        "labels": {"order": name},
    }


@dataclass
class Order:
    """A job as the customer sees it.

    Attributes:
        max_workers: How many workers may serve it.
        helped: Whether more than one was seen to.
        job_id: "" until it was accepted.
        job: As it was seen last.
        cancelled_runs: Runs for which a cancellation was asked.
        ends: For each run, the outcome in the journal as it was first seen.
        closed: Whether the customer has what they want, or has given up.
        fault: What should not have happened, if anything.
    """

    name: str
    kind: str
    max_workers: int = 1
    helped: bool = False
    job_id: str = ""
    job: Job | None = None
    cancelled_runs: set[int] = field(default_factory=set)
    ends: dict[int, bytes] = field(default_factory=dict)
    retries: int = 0
    closed: bool = False
    fault: str = ""


class Customers:
    """Keeps some jobs open, from a thread of its own, until it is told that nothing more is wanted.

    At first there is one at a time, with which idle workers help; then `come_in_crowds` is called.

    Args:
        arena: Where to submit.
        kinds: Of what kinds.
        at_once: How many jobs; there are at least as many altogether, however slowly they go.
        seed: Of the choices made here.

    Attributes:
        orders: All there have been.
        changed_at: When something about them last changed (monotonic seconds).
        failure: What ended the thread, if anything did.
    """

    def __init__(self, arena: Arena, kinds: list[str], at_once: int, seed: str) -> None:
        self._arena = arena
        self._kinds = kinds
        self._at_once = at_once
        self._seed = seed
        self._draw = random.Random(f"{seed} customers")
        self._wanted = True
        self._crowds = False
        self._thread = threading.Thread(target=self._serve, name="customers")
        self.orders: list[Order] = []
        self.changed_at = time.monotonic()
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def come_in_crowds(self) -> None:
        """Keep many jobs open from now on."""
        self._crowds = True

    def stop_ordering(self) -> None:
        """Submit no more than is due; go on with what there is."""
        self._wanted = False

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted or awaited."""
        return not self._thread.is_alive()

    def open_orders(self) -> list[Order]:
        """Jobs that somebody waits for."""
        return [order for order in self.orders if order.job_id and not order.closed]

    def may_be_helped(self) -> bool:
        """Whether some job runs that a second worker may serve."""
        return any(
            order.max_workers > 1 and order.job is not None and order.job.state == "running"
            for order in self.open_orders()
        )

    def late(self) -> list[Order]:
        """Jobs that are about to be published."""
        return [
            order
            for order in self.open_orders()
            if order.job and order.job.progress and order.job.progress.phase in LATE_PHASES
        ]

    def cancel(self, order: Order) -> bool:
        """Ask once for a cancellation. False if the answer was no, or none."""
        if order.job is None:
            return False
        # Before it is asked: the answer may be lost, and the cancellation done.
        order.cancelled_runs.add(order.job.run)
        with StrucPruneClient(
            self._arena.api_url, self._arena.api_key, retry_seconds=0
        ) as impatient:
            try:
                impatient.cancel(order.job_id)
            except ClientError:
                return False
        return True

    def give_up(self) -> None:
        """Wait for nothing more; the thread ends."""
        self._wanted, self._at_once = False, 0
        for order in self.orders:
            order.closed = True
        self._thread.join()

    def _serve(self) -> None:
        try:
            with StrucPruneClient(
                self._arena.api_url, self._arena.api_key, retry_seconds=_PATIENCE_SECONDS
            ) as client:
                while self._orders_more() or any(not order.closed for order in self.orders):
                    most = self._at_once if self._crowds else 1
                    if self._orders_more() and len(self.open_orders()) < most:
                        self._submit(client)
                    for order in self.open_orders():
                        self._look(client, order)
                    time.sleep(_LOOK_SECONDS)
        except BaseException as error:
            self.failure = error
            raise

    def _orders_more(self) -> bool:
        return self._wanted or len(self.orders) < self._at_once

    def _submit(self, client: StrucPruneClient) -> None:
        number = len(self.orders)
        # The last kind is the longest.
        kind = self._kinds[number % len(self._kinds)] if self._crowds else self._kinds[-1]
        draw = random.Random(f"{self._seed} order {number}")
        workers = draw.choice(_WORKERS_IN_A_CROWD if self._crowds else _WORKERS_ALONE)
        order = Order(name=f"{number}", kind=kind, max_workers=workers)
        self.orders.append(order)
        spec = job_spec(order.kind, order.name, order.max_workers)
        try:
            order.job = client.submit(spec, idempotency_key=f"{self._seed} {order.name}")
        except ClientError as error:
            order.fault, order.closed = f"it was refused: {error}", True
            return
        order.job_id = order.job.id
        self.changed_at = time.monotonic()

    def _look(self, client: StrucPruneClient, order: Order) -> None:
        try:
            job = client.get(order.job_id)
        except ClientError as error:
            order.fault, order.closed = f"it is gone: {error}", True
            return
        if order.job is None or job.etag != order.job.etag:
            self.changed_at = time.monotonic()
        order.job = job
        order.helped |= job.workers > 1
        if not job.ended:
            return
        document = outcome(self._arena, order.job_id, job.run)
        if document is not None:
            order.ends.setdefault(job.run, document)
        if job.state == "succeeded":
            order.closed = True
        elif job.state == "cancelled":
            self._after_cancellation(client, order, job)
        elif job.error is None or not job.error.retryable:
            order.fault, order.closed = f"it failed: {job.error}", True
        else:
            self._retry(client, order)

    def _after_cancellation(self, client: StrucPruneClient, order: Order, job: Job) -> None:
        if job.run not in order.cancelled_runs:
            order.fault, order.closed = "it is cancelled, and nobody asked for that", True
        elif self._draw.random() < 0.5:
            self._retry(client, order)
        else:
            order.closed = True

    def _retry(self, client: StrucPruneClient, order: Order) -> None:
        if order.retries == _RETRIES:
            order.fault, order.closed = f"it failed {_RETRIES} times", True
            return
        order.retries += 1
        try:
            client.retry(order.job_id)
        except ClientError as error:
            # It may have succeeded after all: a worker was faster. The next look tells.
            if order.retries == _RETRIES:
                order.fault, order.closed = f"it cannot be retried: {error}", True


def outcome(arena: Arena, job_id: str, run: int) -> bytes | None:
    """The journal's document of how a run ended, None if there is none (yet)."""
    name = "outcome.json" if run == 1 else f"outcome-{run}.json"
    return read(arena, STATE_BUCKET, f"state/jobs/{job_id}/{name}")


def read(arena: Arena, bucket: str, key: str) -> bytes | None:
    """An object, around the proxy; None if there is none."""
    s3 = arena.s3.client()
    try:
        data: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        return None
    return data
