"""Tells receivers what happened to the jobs that they want to hear of.

A job's messages are sent in order; one that is not taken holds up those after it and is tried
again, each time after twice as long, until it is given up. Runs in a thread of the reconciler.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from pydantic import SecretStr

from api.jobs.ledger import Ledger
from api.jobs.record import JobEvent, JobRecord
from api.jobs.state import TERMINAL
from api.webhooks.delivery import Courier, NotDelivered
from api.webhooks.outbox import Outbox, Standing, Subscription
from api.webhooks.targets import WebhookNotAllowed
from strucprune_core.client import webhooks
from strucprune_core.errors import StrucPruneError

_log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
# How often the store is asked for subscriptions that Redis has lost.
RESCAN_SECONDS = 300.0
FIRST_RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 3600.0
# 5 s, 10 s, ... then hourly: some 24 hours in all.
MAX_FAILURES = 34
# Receivers are slow, and some never answer: so many at a time.
_AT_ONCE = 8
_BATCH = 200
_EVENTS = 200
# The ledger wakes us when a job's state changes; this is for the case that its call was lost.
_LOOK_AGAIN_SECONDS = 60.0
# A subscription is written before its job; after this long without one, there was none.
_ORPHAN_SECONDS = 3600.0
# Messages of a job sent in one go, and longer than they take: each has its own time limit.
_MESSAGES = 4
_BUSY_SECONDS = 60.0


class Dispatcher:
    """One pass is `step()`.

    Args:
        outbox: What is to be told to whom.
        ledger: What happened.
        courier: How to tell it.
        secrets: Of each tenant, `whsec_...`.
        first_retry_seconds: Until a message that was not taken is sent again, the first time.
    """

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        courier: Courier,
        secrets: Mapping[str, SecretStr],
        *,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
        look_again_seconds: float = _LOOK_AGAIN_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._courier = courier
        self._secrets = secrets
        self._first_retry_seconds = first_retry_seconds
        self._look_again_seconds = look_again_seconds
        self._rescan_at = 0.0

    def step(self) -> None:
        """Send what is due.

        Raises:
            LedgerUnavailable: Redis does not answer.
            StorageError: the state store does not answer.
        """
        self._rescan_if_due()
        due = self._outbox.due(time.time(), _BATCH)
        if due:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook") as pool:
                list(pool.map(self._look, due))

    def _rescan_if_due(self) -> None:
        if time.monotonic() < self._rescan_at:
            return
        for job_id in self._outbox.subscribed():
            self._outbox.schedule(job_id, time.time(), only_new=True)
        self._rescan_at = time.monotonic() + RESCAN_SECONDS

    def _look(self, job_id: str) -> None:
        """Send the messages of one job that are due."""
        try:
            if not self._outbox.take(job_id, _BUSY_SECONDS):
                return
            try:
                self._tell(job_id)
            finally:
                self._outbox.leave(job_id)
        except StrucPruneError as error:
            _log.error("webhooks of %s: %s", job_id, error)
        except Exception:
            # It has been put off already; the other jobs are told meanwhile.
            _log.exception("webhooks of %s", job_id)

    def _tell(self, job_id: str) -> None:
        # Before anything is read: what happens from now on wakes us again.
        again_at = time.time() + self._look_again_seconds
        self._outbox.schedule(job_id, again_at)
        complete = self._ledger.is_intact()
        # The job first: if it is over by now, its last event is among those read after.
        record = self._ledger.get(job_id)
        standing = self._outbox.standing(job_id)
        events = self._ledger.events(job_id, standing.cursor, _EVENTS)
        if record is not None and not events and record.state not in TERMINAL:
            return
        if record is None:
            # A ledger that has lost its data says nothing: it is about to be rebuilt.
            if complete:
                self._outbox.drop(job_id, _is_orphan)
            return
        subscription = self._outbox.subscription(record)
        if subscription is None:
            # Those who asked for it too, and were refused, have no say.
            self._outbox.drop(job_id)
        elif self._tell_events(record, subscription, standing, events):
            self._outbox.rest(job_id, subscription, record.run, again_at)

    def _tell_events(
        self,
        record: JobRecord,
        subscription: Subscription,
        standing: Standing,
        events: list[JobEvent],
    ) -> bool:
        """Send what is to be told of these events. True if nothing of the job is left to tell."""
        sent = 0
        for event in events:
            name = f"job.{event.data.get('state')}"
            told = event.data.get("run", 1) <= subscription.told_run
            if event.type == "state" and name in subscription.events and not told:
                if sent == _MESSAGES:
                    self._outbox.schedule(record.id, time.time())
                    return False
                sent += 1
                later = self._tell_event(record, subscription, event, name, standing.failures)
                if later is not None:
                    self._outbox.note(record.id, Standing(standing.cursor, standing.failures + 1))
                    self._outbox.schedule(record.id, time.time() + later)
                    return False
            standing = Standing(event.id, 0)
            self._outbox.note(record.id, standing)
        if len(events) == _EVENTS:
            self._outbox.schedule(record.id, time.time())
            return False
        return record.state in TERMINAL

    def _tell_event(
        self,
        record: JobRecord,
        subscription: Subscription,
        event: JobEvent,
        name: str,
        failures: int,
    ) -> float | None:
        """Send one event; seconds until it is to be sent again, or None if it is dealt with."""
        secret = self._secrets.get(subscription.tenant)
        if secret is None:
            _log.error("%s: there is no webhook secret of its tenant any more", record.id)
            return None
        body = message_body(name, record, event)
        message_id = _message_id(record.id, event.id)
        timestamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "strucprune-webhooks",
            webhooks.ID: message_id,
            webhooks.TIMESTAMP: str(timestamp),
            webhooks.SIGNATURE: webhooks.sign(
                secret.get_secret_value(), message_id, timestamp, body
            ),
        }
        try:
            self._courier.post(subscription.webhook_url, headers, body)
        except WebhookNotAllowed as error:
            # Not tried again: it would only probe on.
            _log.warning("%s: %s is not told: %s", record.id, name, error.message)
            return None
        except NotDelivered as error:
            if error.for_good or failures >= MAX_FAILURES:
                _log.warning("%s: %s is given up: %s", record.id, name, error)
                return None
            _log.info("%s: %s not taken yet: %s", record.id, name, error)
            return min(self._first_retry_seconds * 2.0**failures, MAX_RETRY_SECONDS)
        return None


def _is_orphan(subscription: Subscription) -> bool:
    """Whether its job is no more or never came about, and is not just being submitted."""
    return subscription.told_run > 0 or time.time() - subscription.created_at > _ORPHAN_SECONDS


def message_body(name: str, record: JobRecord, event: JobEvent) -> bytes:
    """The message: what happened to which job. All else is to be had from the API."""
    content = {
        "type": name,
        "timestamp": datetime.fromtimestamp(event.at, UTC).isoformat(),
        "data": {
            "job_id": record.id,
            "state": event.data.get("state"),
            "run": event.data.get("run", 1),
            "attempt": event.data.get("attempt"),
            "error": event.data.get("error"),
            "labels": record.labels,
        },
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _message_id(job_id: str, event_id: str) -> str:
    """The same each time that a message is sent; ids hold no dot, the signature's separator."""
    return f"msg_{hashlib.sha256(f'{job_id} {event_id}'.encode()).hexdigest()[:32]}"


def run(dispatcher: Dispatcher, stop: threading.Event, every_seconds: float) -> None:
    """Pass after pass until `stop` is set. An outage is logged and waited out.

    So is whatever else goes wrong: the reconciler would go on without this thread, unnoticed.
    """
    while not stop.is_set():
        try:
            dispatcher.step()
        except StrucPruneError as error:
            _log.error("webhooks wait: %s", error)
        except Exception:
            _log.exception("webhooks wait")
        stop.wait(every_seconds)
