"""The doorbell: a Celery message that says "there is work". Losing or doubling it is harmless.

It names no job: the ledger chooses the next job when a worker claims one (see `Ledger.claim`). So
one doorbell for each queued job is enough, whichever jobs they are.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from kombu.exceptions import ChannelError, KombuError

from api.jobs.ledger import Ledger

_log = logging.getLogger(__name__)

TASK = "worker.tasks.run_job"
QUEUE = "strucprune.jobs"
# Calls a worker to help with a job that another worker leads. Answered only when no job is queued.
HELP_TASK = "worker.tasks.help_job"
HELP_QUEUE = "strucprune.help"
# In the order in which a worker empties them.
ALL_QUEUES = (QUEUE, HELP_QUEUE)
# Most calls for help that may wait. More would pile up while all workers are busy.
_HELP_CALLS = 64
# A submission waits a tenth of a second for a broker that refuses connections, and some three
# seconds for one that does not answer: message, new connection, message. There is one retry because
# a restart breaks connections. The reconciler rings for what is lost beyond that.
_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.0, "interval_max": 0.1}
_SOCKET_TIMEOUT_SECONDS = 1.0
_NO_QUEUE = "404"


def celery_settings(broker_url: str) -> dict[str, Any]:
    """The Celery configuration that the API and the worker share.

    Messages are not acknowledged and results are not kept, since the ledger recovers lost work.
    Celery on Redis would deliver a late-acknowledged task again while it still runs, once it
    outlives the visibility timeout.
    """
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        # Workers empty the queues in their order, calls for help last.
        "broker_transport_options": {"queue_order_strategy": "priority"},
        # No acknowledgements: for them Celery would write each message that it reads to Redis,
        # which a full Redis refuses.
        "task_queues": {
            name: {"exchange": name, "routing_key": name, "no_ack": True} for name in ALL_QUEUES
        },
        # On such a refusal a worker connects again until that works, instead of ending.
        "broker_channel_error_retry": True,
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_backend": None,
        "task_acks_late": False,
        # A busy worker must not take a second message. A multiplier of 1 alone still allows one;
        # Celery 5.7 is the first release that keeps to this after a reconnection.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # True loses tasks on Redis.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


class Doorbell:
    """Rings for a worker. Safe to share between threads."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("strucprune-doorbell", set_as_current=False)
        self._app.conf.update(celery_settings(broker_url))
        self._app.conf.broker_transport_options = {
            **self._app.conf.broker_transport_options,
            "socket_timeout": _SOCKET_TIMEOUT_SECONDS,
            "socket_connect_timeout": _SOCKET_TIMEOUT_SECONDS,
        }

    def ring(self) -> bool:
        """Ring for a queued job. False, with a warning in the log, if the broker is down."""
        return self._send(TASK, [], QUEUE)

    def ring_for_help(self, job_id: str, times: int) -> bool:
        """Call this many workers to help with a job, or fewer if many calls wait already.

        False, with a warning in the log, if the broker is down.
        """
        waiting = self.waiting_for_help()
        if waiting is None:
            return False
        calls = min(times, _HELP_CALLS - waiting)
        return all(self._send(HELP_TASK, [job_id], HELP_QUEUE) for _ in range(calls))

    def _send(self, task: str, args: list[str], queue: str) -> bool:
        try:
            self._app.send_task(
                task, args=args, queue=queue, retry=True, retry_policy=_RETRY_POLICY
            )
        # Brokers' clients raise errors of many kinds. The job is safe without the doorbell.
        except Exception as error:
            _log.warning("cannot ring in %s, the reconciler will later: %s", queue, error)
            return False
        return True

    def waiting(self) -> int | None:
        """How many doorbells no worker has taken yet; None if the broker does not answer."""
        return self._waiting(QUEUE)

    def waiting_for_help(self) -> int | None:
        """How many calls for help no worker has taken yet; None if the broker does not answer."""
        return self._waiting(HELP_QUEUE)

    def _waiting(self, queue: str) -> int | None:
        # A pooled connection: every submission asks, and a new one would take some milliseconds.
        with self._app.connection_or_acquire() as connection:
            try:
                connection.ensure_connection(reraise_as_library_errors=False, **_RETRY_POLICY)
                channel = connection.default_channel
                return int(channel.queue_declare(queue, passive=True).message_count)
            except (*connection.connection_errors, *connection.channel_errors, KombuError) as error:
                if isinstance(error, ChannelError) and str(error.reply_code) == _NO_QUEUE:
                    return 0  # an empty queue does not exist in Redis
                connection.collect()
                _log.warning("cannot read the length of %s: %s", queue, error)
                return None

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()


def ring_if_missing(ledger: Ledger, doorbell: Doorbell) -> bool:
    """Ring once if fewer doorbells wait than jobs are queued.

    Without this limit, repeated requests would pile up doorbells in Redis.

    Returns:
        False if the broker is down. The reconciler rings later.

    Raises:
        LedgerUnavailable: the ledger does not answer. The reconciler rings later.
    """
    waiting = doorbell.waiting()
    if waiting is None:
        return False
    return waiting >= ledger.queued() or doorbell.ring()
