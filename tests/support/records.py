"""A job as the ledger is given it, and as the journal holds it."""

from __future__ import annotations

import time
from typing import Any

from api.jobs.journal import JournalEntry
from api.jobs.record import NewJob
from strucprune_core.spec import JobSpec

ERROR = {"code": "storage_unavailable", "message": "no answer", "retryable": True}
SPEC = JobSpec.model_validate(
    {
        "model": {"uri": "s3://bucket/model"},
        "output": {"uri_prefix": "s3://bucket/out"},
        "pruning": {"sparsity": 0.5},
        "calibration": {"uri": "s3://bucket/text.txt"},
        "runtime": {"priority": "high", "max_attempts": 5},
        "labels": {"team": "nlp"},
    }
)


def new_job(job_id: str = "job_a", **changes: Any) -> NewJob:
    """A job of tenant acme, submitted now."""
    fields = {
        "id": job_id,
        "tenant": "acme",
        "fingerprint": "f",
        "created_at": time.time(),
        "spec": {"model": {"uri": "s3://b/m"}},
    }
    return NewJob.model_validate({**fields, **changes})


def journal_entry(tenant: str = "acme", created_at: float = 1000.5) -> JournalEntry:
    """What the journal holds of a job with the specification `SPEC`."""
    return JournalEntry(tenant=tenant, spec=SPEC, fingerprint="f", created_at=created_at)
