"""A client of the StrucPrune service. No torch.

    from strucprune_core.client import StrucPruneClient

    with StrucPruneClient("https://prune.example.com", api_key) as client:
        job = client.submit(spec)
        job = client.wait(job.id, on_change=lambda job: print(job.state, job.progress))
        client.download(job.id, Path("pruned"))

`AsyncStrucPruneClient` has the same methods to await. Without arguments, both read STRUCPRUNE_URL
and STRUCPRUNE_API_KEY. Requests whose answer got lost are repeated; a submission carries an
idempotency key, so that repeating it makes no second job. Failures are the classes of `errors`.
"""

from strucprune_core.client.asynchronous import AsyncStrucPruneClient
from strucprune_core.client.errors import (
    ApiProblem,
    ClientError,
    DownloadFailed,
    JobConflict,
    JobNotFound,
    NotAllowed,
    RateLimited,
    RequestInvalid,
    ServiceUnavailable,
    Unreachable,
    WaitTimeout,
)
from strucprune_core.client.models import (
    ENDED,
    Artifact,
    Event,
    FieldError,
    Job,
    JobError,
    LogLine,
    Progress,
    QueuePlace,
    Quota,
    Validation,
    Worker,
)
from strucprune_core.client.synchronous import StrucPruneClient

__all__ = [
    "ENDED",
    "ApiProblem",
    "Artifact",
    "AsyncStrucPruneClient",
    "ClientError",
    "DownloadFailed",
    "Event",
    "FieldError",
    "Job",
    "JobConflict",
    "JobError",
    "JobNotFound",
    "LogLine",
    "NotAllowed",
    "Progress",
    "QueuePlace",
    "Quota",
    "RateLimited",
    "RequestInvalid",
    "ServiceUnavailable",
    "StrucPruneClient",
    "Unreachable",
    "Validation",
    "WaitTimeout",
    "Worker",
]
