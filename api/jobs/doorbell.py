"""The doorbell: a Celery message that says "there is work". Losing or doubling it is harmless.

It names no job: which one is next is decided when a worker claims it (see `Ledger.claim`). So as
many doorbells as there are jobs that wait are enough, whoever's they are.
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
# Rung for jobs that others lead and that this worker may help with: only where no job waits.
HELP_TASK = "worker.tasks.help_job"
HELP_QUEUE = "strucprune.help"
# In the order in which a worker empties them.
ALL_QUEUES = (QUEUE, HELP_QUEUE)
# Calls for help that may wait at a time. More would pile up while all workers are busy.
_HELP_CALLS = 64
# A submission waits a tenth of a second for a broker that refuses, some three seconds for one that
# falls silent: for the message, another connection, and the message again. One retry, because a
# restart breaks connections; what is lost beyond that, the reconciler rings for.
_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.0, "interval_max": 0.1}
_SOCKET_TIMEOUT_SECONDS = 1.0
_NO_QUEUE = "404"


def celery_settings(broker_url: str) -> dict[str, Any]:
    """The Celery configuration that the API and the worker share.

    Messages are acknowledged early and results are not kept: recovery is the ledger's business,
    because Celery on Redis redelivers a late-acknowledged task that outlives the visibility timeout
    while it still runs.
    """
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        # Empty the queues in their order, help last.
        "broker_transport_options": {"queue_order_strategy": "priority"},
        # Not acknowledged at all: for that Celery would write down each message that it reads,
        # which a full Redis refuses.
        "task_queues": {
            name: {"exchange": name, "routing_key": name, "no_ack": True} for name in ALL_QUEUES
        },
        # Else such a refusal would end a worker; so it connects again, until that works.
        "broker_channel_error_retry": True,
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_backend": None,
        "task_acks_late": False,
        # With early acknowledgement, a multiplier of 1 alone still takes one more message. Celery
        # 5.7 is the first to keep to it after a reconnection.
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
        """Tell a worker that a job waits. False, with a warning logged, if the broker is down."""
        return self._send(TASK, [], QUEUE)

    def ring_for_help(self, job_id: str, times: int) -> bool:
        """Ask so many workers to help with a job, as `ring`; none where many are asked already."""
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
        # Whatever the client of this or another broker raises: the job is safe without the bell.
        except Exception as error:
            _log.warning("could not ring in %s; the reconciler will: %s", queue, error)
            return False
        return True

    def waiting(self) -> int | None:
        """Messages that no worker has taken yet; None if the broker does not say."""
        return self._waiting(QUEUE)

    def waiting_for_help(self) -> int | None:
        """The same of those that ask for help."""
        return self._waiting(HELP_QUEUE)

    def _waiting(self, queue: str) -> int | None:
        # Of the pool: submissions ask, and a connection of their own would take them some ms each.
        with self._app.connection_or_acquire() as connection:
            try:
                connection.ensure_connection(reraise_as_library_errors=False, **_RETRY_POLICY)
                channel = connection.default_channel
                return int(channel.queue_declare(queue, passive=True).message_count)
            except (*connection.connection_errors, *connection.channel_errors, KombuError) as error:
                if isinstance(error, ChannelError) and str(error.reply_code) == _NO_QUEUE:
                    return 0  # Redis has no empty lists
                connection.collect()
                _log.warning("the broker does not say what waits in %s: %s", queue, error)
                return None

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()


def ring_if_missing(ledger: Ledger, doorbell: Doorbell) -> bool:
    """Ring once if fewer doorbells wait than jobs.

    More would pile up in Redis, by as many as somebody makes requests.

    Returns:
        False if the broker is down. The reconciler rings after a while.

    Raises:
        LedgerUnavailable: the ledger does not answer; the same.
    """
    waiting = doorbell.waiting()
    if waiting is None:
        return False
    return waiting >= ledger.queued() or doorbell.ring()
