"""What the routes work with, built once per process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Self

from fastapi import Depends, Request

from api.callers import Callers
from api.jobs.doorbell import Doorbell
from api.jobs.job_reads import JobReads
from api.jobs.journal import Journal
from api.jobs.ledger import RedisLedger, connect
from api.settings import Settings
from api.shared_reads import SharedReads
from api.stores import Stores
from api.webhooks import outbox
from api.webhooks.outbox import Outbox
from strucprune_core.access.key_store import KeyStore


@dataclass(frozen=True, slots=True)
class Services:
    """The ledger, the journal, the doorbell, the stores of the users, and who may call.

    Attributes:
        job_reads: The ledger's jobs once more, to be read on the event loop.
        shared: Reads that many streams of one job wait for at once.
    """

    settings: Settings
    ledger: RedisLedger
    job_reads: JobReads
    journal: Journal
    doorbell: Doorbell
    stores: Stores
    callers: Callers
    outbox: Outbox
    shared: SharedReads = field(default_factory=SharedReads)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Build everything; connections are made when first used.

        Raises:
            InvalidSpec: `state_uri` or the S3 settings are malformed.
        """
        stores = Stores(settings.s3)
        state = stores.open(settings.state_uri)
        return cls(
            settings,
            connect(settings.redis_url),
            JobReads(settings.redis_url),
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
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.job_reads.close()
        self.outbox.close()
        self.doorbell.close()
        self.ledger.close()


# Not run in a thread, as functions that are not async would be.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Wired = Annotated[Services, Depends(_services)]
