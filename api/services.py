"""What the routes work with, built once per process."""

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
from strucprune_core.access.key_store import KeyStore

# Requests that hold a thread, of forty that there are for all blocking work: those of one tenant
# must not take all, nor those of all tenants the ones that keys are looked up in.
_THREADS = 32
_THREADS_OF_TENANT = 8
_WAITING_FOR_THREAD = 256
# Jobs that are looked at, which takes a helper process for a while.
_WAITING_FOR_HELPER = 64
# Restoring a job that the ledger does not know takes several requests to the journal.
_RESTORES, _RESTORES_OF_TENANT, _WAITING_FOR_RESTORE = 6, 2, 256


def _threads() -> Turns:
    return Turns(_THREADS, _THREADS_OF_TENANT, _WAITING_FOR_THREAD)


def _restores() -> Turns:
    return Turns(_RESTORES, _RESTORES_OF_TENANT, _WAITING_FOR_RESTORE)


def _inspections(helpers: int) -> Turns:
    """One helper is always left for others."""
    return Turns(helpers, max(1, helpers - 1), _WAITING_FOR_HELPER)


@dataclass(frozen=True, slots=True)
class Services:
    """The ledger, the journal, the doorbell, the stores of the users, and who may call.

    Attributes:
        job_reads: The ledger's jobs once more, to be read on the event loop.
        inspectors: What parses the files of jobs.
        inspections: Turns for looking at a job, one for each of the inspectors.
        threads: Turns for requests that block a thread.
        restores: Turns for looking into the journal for a job that the ledger does not know.
        feed: News of jobs, for event streams.
        held: Counts event streams and long-polls.
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
    threads: Turns = field(default_factory=_threads)
    restores: Turns = field(default_factory=_restores)

    @classmethod
    def connect(cls, settings: Settings, inspectors: Inspectors | None = None) -> Self:
        """Build everything; connections are made, and helpers started, when first used.

        Args:
            settings: The settings.
            inspectors: The caller's, who ends them; None for some of our own.

        Raises:
            InvalidSpec: `state_uri` or the S3 settings are malformed.
        """
        stores = Stores(settings.s3)
        state = stores.open(settings.state_uri)
        job_reads = JobReads(settings.redis_url)
        inspectors = inspectors or Inspectors(settings.inspection_helpers)
        return cls(
            settings,
            connect(settings.redis_url),
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
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.feed.close()
        await self.job_reads.close()
        self.outbox.close()
        self.doorbell.close()
        self.ledger.close()


# Not run in a thread, as functions that are not async would be.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Wired = Annotated[Services, Depends(_services)]
