"""The services that routes use, built once per process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Self

from fastapi import Depends, Request

from api.callers import Callers
from api.event_feed import EventFeed
from api.inspection.inspectors import Inspectors
from api.jobs.doorbell import Doorbell
from api.jobs.job_reads import JobReads
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger, connect
from api.long_answers import LongAnswers
from api.settings import Settings
from api.stores import Stores
from api.turns import Turns
from api.webhooks import outbox
from api.webhooks.outbox import Outbox
from api.worker_classes import WorkerClasses
from strucprune_core.access.key_store import KeyStore

# Requests that may block a thread at once. There are forty threads for all blocking work. No tenant
# must take all of them, and some must stay free for looking up keys.
_THREADS = 32
_THREADS_OF_TENANT = 8
_WAITING_FOR_THREAD = 256
# Jobs that wait to be judged. Each takes a helper process for a while.
_WAITING_FOR_HELPER = 64
# Restoring a job that the ledger does not know takes several requests to the journal.
_RESTORES, _RESTORES_OF_TENANT, _WAITING_FOR_RESTORE = 6, 2, 256


def _threads() -> Turns:
    return Turns(_THREADS, _THREADS_OF_TENANT, _WAITING_FOR_THREAD)


def _restores() -> Turns:
    return Turns(_RESTORES, _RESTORES_OF_TENANT, _WAITING_FOR_RESTORE)


def _inspections(helpers: int) -> Turns:
    """Turns for the helpers; one tenant gets all but one."""
    return Turns(helpers, max(1, helpers - 1), _WAITING_FOR_HELPER)


@dataclass(frozen=True, slots=True)
class Services:
    """The ledger, the journal, the doorbell, the stores of tenants, and the callers.

    Attributes:
        job_reads: Reads jobs from the ledger on the event loop.
        inspectors: Judge jobs in helper processes.
        inspections: Turns for judging a job, one for each inspector.
        threads: Turns for requests that block a thread.
        restores: Turns for looking up a job in the journal that the ledger does not have.
        feed: New events of jobs, for event streams.
        long_answers: Counts event streams and long-polls.
        worker_classes: Classes of workers, for which times are predicted.
    """

    settings: Settings
    ledger: Ledger
    job_reads: JobReads
    journal: Journal
    doorbell: Doorbell
    stores: Stores
    callers: Callers
    outbox: Outbox
    inspectors: Inspectors
    inspections: Turns
    feed: EventFeed
    long_answers: LongAnswers
    worker_classes: WorkerClasses
    threads: Turns = field(default_factory=_threads)
    restores: Turns = field(default_factory=_restores)

    @classmethod
    def connect(cls, settings: Settings, inspectors: Inspectors | None = None) -> Self:
        """Build all services. Connections are made, and helpers started, when first used.

        Args:
            settings: The settings.
            inspectors: Shared inspectors, which the caller ends; None for new ones.

        Raises:
            InvalidSpec: `state_uri` or the S3 settings are malformed.
        """
        stores = Stores(settings.s3)
        state = stores.open(settings.state_uri)
        job_reads = JobReads(settings.redis_url)
        inspectors = inspectors or Inspectors(settings.inspection_helpers)
        ledger = connect(settings.redis_url)
        return cls(
            settings,
            ledger,
            job_reads,
            Journal(state),
            Doorbell(settings.celery_broker_url),
            stores,
            Callers(
                settings.api_keys,
                KeyStore(state),
                settings.key_pepper.get_secret_value(),
                settings.key_cache_seconds,
            ),
            outbox.connect(state, settings.redis_url),
            inspectors,
            _inspections(inspectors.count),
            EventFeed(job_reads),
            LongAnswers(settings.event_streams),
            WorkerClasses(ledger),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.feed.close()
        await self.job_reads.close()
        self.outbox.close()
        self.doorbell.close()
        self.ledger.close()


# Async, since FastAPI would run another function in a thread.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Wired = Annotated[Services, Depends(_services)]
