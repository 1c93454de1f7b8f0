"""Sends webhooks: reads the events of jobs and sends each receiver what it subscribed to.

The messages of a job are sent in order. One that is not accepted delays those after it. It is tried
again, each time after twice as long, until it is given up. The dispatcher runs in a thread of the
reconciler. It gives each job that is due to a sender thread and waits for none of them (`lanes`).
Jobs that are not due stay in Redis, so memory and threads are bounded.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pydantic import SecretStr

from api.jobs.ledger import Ledger
from api.jobs.record import JobEvent, JobRecord
from api.jobs.state import TERMINAL
from api.webhooks.delivery import NotDelivered, WebhookClient
from api.webhooks.lanes import AT_ONCE, Breakers, Lanes, Receiver
from api.webhooks.messages import message_body
from api.webhooks.outbox import DeliveryProgress, Outbox, Subscription
from api.webhooks.targets import WebhookNotAllowed, parse_target
from strucprune_core.client import webhooks
from strucprune_core.errors import StrucPruneError

_log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
# How often the store is scanned for subscriptions that Redis has lost.
RESCAN_SECONDS = 300.0
FIRST_RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 3600.0
# 5 s, 10 s, ... then hourly: some 24 hours in all.
MAX_FAILURES = 34
# Age of an event after which it is no longer sent to a receiver that does not answer.
_MAX_AGE_SECONDS = 30 * 3600.0
# A receiver that takes longer to refuse a message counts as one that does not answer.
_SLOW_SECONDS = 5.0
_BATCH = 200
_NEXT_BATCH_SECONDS = 0.05
_EVENTS = 200
# The ledger schedules a job when its state changes. This covers the case that this was lost.
_LOOK_AGAIN_SECONDS = 60.0
# A subscription is written before its job. If there is no job after this time, none will come.
_ORPHAN_SECONDS = 3600.0
# Messages of a job sent in one go, and a time limit that they keep: each has its own.
_MESSAGES = 4
_BUSY_SECONDS = 60.0


class Dispatcher:
    """Sends the webhooks that are due, one pass for each call of `begin`.

    Args:
        outbox: The subscriptions and their schedule.
        ledger: The events of jobs.
        client: Sends messages.
        secrets: The signing secret of each tenant, `whsec_...`.
        first_retry_seconds: Time until the first retry of a message.
        look_again_seconds: Time until the events of a job are read again in any case.
        lanes: Limits how much is sent at once.
        breakers: Pause receivers that do not answer.
    """

    def __init__(
        self,
        outbox: Outbox,
        ledger: Ledger,
        client: WebhookClient,
        secrets: Mapping[str, SecretStr],
        *,
        first_retry_seconds: float = FIRST_RETRY_SECONDS,
        look_again_seconds: float = _LOOK_AGAIN_SECONDS,
        lanes: Lanes | None = None,
        breakers: Breakers | None = None,
    ) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._client = client
        self._secrets = secrets
        self._first_retry_seconds = first_retry_seconds
        self._look_again_seconds = look_again_seconds
        self._rescan_at = 0.0
        self._lanes = lanes or Lanes(clock=outbox.now)
        self._breakers = breakers or Breakers()
        # As many threads as there are places in the lanes: nothing queues up here.
        self._senders = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")
        self._sending: dict[str, Future[None]] = {}

    def begin(self) -> bool:
        """Give jobs that are due to the senders, without waiting for them.

        Returns:
            Whether more jobs may be due.

        Raises:
            LedgerUnavailable: Redis does not answer.
            StorageError: the state store does not answer.
        """
        self._rescan_if_due()
        self._sending = {job: sent for job, sent in self._sending.items() if not sent.done()}
        due = self._outbox.due(self._outbox.now(), _BATCH)
        for job_id in due:
            if job_id not in self._sending:
                self._hand_over(job_id)
        return len(due) == _BATCH

    def step(self) -> None:
        """Send what is due, and wait for the senders.

        Raises:
            LedgerUnavailable: Redis does not answer.
            StorageError: the state store does not answer.
        """
        self.begin()
        wait(self._sending.values())

    def close(self) -> None:
        """Wait for the messages that are being sent, and send no more."""
        self._senders.shutdown()

    def _hand_over(self, job_id: str) -> None:
        try:
            record = self._ledger.get(job_id)
            tenant = "" if record is None else record.tenant
            if self._lanes.enter(tenant):
                self._sending[job_id] = self._senders.submit(self._look, job_id, tenant)
            else:
                self._outbox.schedule(job_id, self._lanes.next_turn(tenant))
        except StrucPruneError:
            raise
        except Exception:
            # Only of this job: the others go on.
            _log.exception("job %s: webhooks failed", job_id)
            self._outbox.schedule(job_id, self._outbox.now() + self._look_again_seconds)

    def _rescan_if_due(self) -> None:
        if time.monotonic() < self._rescan_at:
            return
        for job_id in self._outbox.subscribed():
            self._outbox.schedule(job_id, self._outbox.now(), only_new=True)
        self._rescan_at = time.monotonic() + RESCAN_SECONDS

    def _look(self, job_id: str, tenant: str) -> None:
        """Send the messages of one job that are due."""
        began = time.monotonic()
        try:
            if not self._outbox.take(job_id, _BUSY_SECONDS):
                return
            try:
                self._send_due(job_id)
            finally:
                self._outbox.leave(job_id)
        except StrucPruneError as error:
            _log.error("job %s: webhooks failed: %s", job_id, error)
        except Exception:
            # Only of this job, which is scheduled again already.
            _log.exception("job %s: webhooks failed", job_id)
        finally:
            self._lanes.leave(tenant, time.monotonic() - began)

    def _send_due(self, job_id: str) -> None:
        # Before anything is read, so that what happens from now on schedules the job again.
        again_at = self._outbox.now() + self._look_again_seconds
        self._outbox.schedule(job_id, again_at)
        complete = self._ledger.is_intact()
        # The job first: if it has ended, its last event is among those read next.
        record = self._ledger.get(job_id)
        progress = self._outbox.progress(job_id)
        events = self._ledger.events(job_id, progress.cursor, _EVENTS)
        if record is not None and not events and record.state not in TERMINAL:
            return
        if record is None:
            # A ledger that has lost its data proves nothing: it is about to be rebuilt.
            if complete:
                now = self._outbox.now()
                self._outbox.drop(job_id, lambda subscription: _is_orphan(subscription, now))
            return
        subscription = self._outbox.subscription(record)
        if subscription is None:
            # Subscriptions of other requests under the same key, which did not become the job.
            self._outbox.drop(job_id)
        elif self._send_events(record, subscription, progress, events):
            self._outbox.rest(job_id, subscription, record.run, again_at)

    def _send_events(
        self,
        record: JobRecord,
        subscription: Subscription,
        progress: DeliveryProgress,
        events: list[JobEvent],
    ) -> bool:
        """Send the messages for these events. True if the job has no more messages to send."""
        sent = 0
        for event in events:
            name = f"job.{event.data.get('state')}"
            delivered = event.data.get("run", 1) <= subscription.told_run
            if event.type == "state" and name in subscription.events and not delivered:
                if sent == _MESSAGES:
                    self._outbox.schedule(record.id, self._outbox.now())
                    return False
                sent += 1
                retry = self._send_event(record, subscription, event, name, progress.failures)
                if retry is not None:
                    failures = progress.failures + retry.tried
                    self._outbox.note(record.id, DeliveryProgress(progress.cursor, failures))
                    self._outbox.schedule(record.id, self._outbox.now() + retry.seconds)
                    return False
            progress = DeliveryProgress(event.id, 0)
            self._outbox.note(record.id, progress)
        if len(events) == _EVENTS:
            self._outbox.schedule(record.id, self._outbox.now())
            return False
        return record.state in TERMINAL

    def _send_event(
        self,
        record: JobRecord,
        subscription: Subscription,
        event: JobEvent,
        name: str,
        failures: int,
    ) -> _Retry | None:
        """Send one event. Returns when to try again, or None if the event is handled."""
        secret = self._secrets.get(subscription.tenant)
        if secret is None:
            _log.error("job %s: its tenant has no webhook secret any more", record.id)
            return None
        try:
            target = parse_target(subscription.webhook_url, self._client.policy)
            receiver = (subscription.tenant, target.host, target.port)
            closed_seconds = self._breakers.wait_seconds(receiver)
            if closed_seconds and self._outbox.now() - event.at < _MAX_AGE_SECONDS:
                return _Retry(closed_seconds, tried=False)
            if closed_seconds:
                raise NotDelivered("the receiver has not answered for too long", for_good=True)
            self._post(record, subscription, event, name, secret, receiver)
        except WebhookNotAllowed as error:
            # Not tried again: retries would only probe an address that is not allowed.
            _log.warning("job %s: webhook %s refused: %s", record.id, name, error.message)
        except NotDelivered as error:
            if not error.for_good and failures < MAX_FAILURES:
                _log.info("job %s: webhook %s not delivered yet: %s", record.id, name, error)
                seconds = self._first_retry_seconds * 2.0**failures
                return _Retry(min(seconds, MAX_RETRY_SECONDS), tried=True)
            _log.warning("job %s: webhook %s given up: %s", record.id, name, error)
        return None

    def _post(
        self,
        record: JobRecord,
        subscription: Subscription,
        event: JobEvent,
        name: str,
        secret: SecretStr,
        receiver: Receiver,
    ) -> None:
        body = message_body(subscription.format, name, record, event)
        headers = _headers(_message_id(record.id, event.id), secret, body)
        began = time.monotonic()
        try:
            self._client.post(subscription.webhook_url, headers, body, subscription.tenant)
        except NotDelivered as error:
            if error.answered and time.monotonic() - began < _SLOW_SECONDS:
                self._breakers.answered(receiver)
            else:
                self._breakers.failed(receiver)
            raise
        self._breakers.answered(receiver)


@dataclass(frozen=True, slots=True)
class _Retry:
    """When to send a message (again), in seconds from now, and whether it was tried now."""

    seconds: float
    tried: bool


def _headers(message_id: str, secret: SecretStr, body: bytes) -> dict[str, str]:
    timestamp = int(time.time())
    return {
        "Content-Type": "application/json",
        "User-Agent": "strucprune-webhooks",
        webhooks.ID: message_id,
        webhooks.TIMESTAMP: str(timestamp),
        webhooks.SIGNATURE: webhooks.sign(secret.get_secret_value(), message_id, timestamp, body),
    }


def _is_orphan(subscription: Subscription, now: float) -> bool:
    """Whether the job of a subscription was removed or never made, and is not being submitted."""
    return subscription.told_run > 0 or now - subscription.created_at > _ORPHAN_SECONDS


def _message_id(job_id: str, event_id: str) -> str:
    """An id that stays the same over retries. It holds no dot, which the signature uses."""
    return f"msg_{hashlib.sha256(f'{job_id} {event_id}'.encode()).hexdigest()[:32]}"


def run(dispatcher: Dispatcher, stop: threading.Event, every_seconds: float) -> None:
    """Do passes until `stop` is set. An outage is logged, and the next pass tries again.

    So is any other error: otherwise the reconciler would go on without this thread, unnoticed.
    """
    while not stop.is_set():
        more = False
        try:
            more = dispatcher.begin()
        except StrucPruneError as error:
            _log.error("webhook pass failed: %s", error)
        except Exception:
            _log.exception("webhook pass failed")
        stop.wait(min(every_seconds, _NEXT_BATCH_SECONDS) if more else every_seconds)
    dispatcher.close()
