"""A client of the StrucPrune service. No torch.

    from strucprune_core.client import StrucPruneClient

    with StrucPruneClient("https://prune.example.com", api_key) as client:
        job = client.submit(spec)
        job = client.wait(job.id, on_change=lambda job: print(job.state, job.progress))
        client.download(job.id, Path("pruned"))

`AsyncStrucPruneClient` has the same methods to await. Without arguments, both read STRUCPRUNE_URL
and STRUCPRUNE_API_KEY. Requests whose answer got lost are repeated; a submission carries an
idempotency key, so that repeating it makes no second job. Failures are the classes of `errors`.

Importing this package imports nothing else: each name loads its module on first use. So `--help` of
a command that calls a service need not load the HTTP library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strucprune_core.client.asynchronous import AsyncStrucPruneClient
    from strucprune_core.client.errors import (
        AmbiguousId,
        ApiProblem,
        ClientError,
        DownloadFailed,
        JobConflict,
        JobNotFound,
        NoSuchId,
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
        ClassTime,
        Cost,
        Event,
        FieldError,
        Job,
        JobError,
        LogLine,
        PredictedTime,
        Progress,
        QueuePlace,
        Quota,
        Start,
        Validation,
        Worker,
    )
    from strucprune_core.client.synchronous import StrucPruneClient

__all__ = [
    "ENDED",
    "AmbiguousId",
    "ApiProblem",
    "Artifact",
    "AsyncStrucPruneClient",
    "ClassTime",
    "ClientError",
    "Cost",
    "DownloadFailed",
    "Event",
    "FieldError",
    "Job",
    "JobConflict",
    "JobError",
    "JobNotFound",
    "LogLine",
    "NoSuchId",
    "NotAllowed",
    "PredictedTime",
    "Progress",
    "QueuePlace",
    "Quota",
    "RateLimited",
    "RequestInvalid",
    "ServiceUnavailable",
    "Start",
    "StrucPruneClient",
    "Unreachable",
    "Validation",
    "WaitTimeout",
    "Worker",
]


_MODULES = {
    "asynchronous": ["AsyncStrucPruneClient"],
    "synchronous": ["StrucPruneClient"],
    "errors": [
        "AmbiguousId",
        "ApiProblem",
        "ClientError",
        "DownloadFailed",
        "JobConflict",
        "JobNotFound",
        "NoSuchId",
        "NotAllowed",
        "RateLimited",
        "RequestInvalid",
        "ServiceUnavailable",
        "Unreachable",
        "WaitTimeout",
    ],
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'models')}"), name)
