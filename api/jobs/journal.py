"""The journal: what must survive the loss of Redis, in object storage.

jobs/{job_id}/spec.json      what was asked; written once, before the client gets its 202
jobs/{job_id}/outcome.json   how it ended; writing it *is* the commit, and the first writer wins
workspaces/{job_id}/         finished units of work, so that another attempt goes on from there
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from api.jobs.ledger import Finished
from api.jobs.record import NewJob
from strucprune_core.errors import StorageError
from strucprune_core.spec import JobSpec
from strucprune_core.storage.store import Store

_ROOT = "jobs/"
# Apart from the journal, so that listing all jobs does not list their workspaces.
_WORKSPACES = "workspaces/"
_SPEC = "/spec.json"
_OUTCOME = "/outcome.json"


class _Document(BaseModel):
    # Fields that a newer release added are ignored, so a rollback can still read the journal.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: Literal[1] = 1


_D = TypeVar("_D", bound=_Document)


class JournalEntry(_Document):
    """What was asked.

    Attributes:
        fingerprint: SHA-256 (hex) of the whole request; tells a replay from a reused key.
        created_at: Unix seconds.
    """

    tenant: str
    spec: JobSpec
    fingerprint: str
    created_at: float

    def as_new_job(self, job_id: str, *, fence: int = 0) -> NewJob:
        """The ledger's view of this entry."""
        return NewJob(
            id=job_id,
            tenant=self.tenant,
            fingerprint=self.fingerprint,
            created_at=self.created_at,
            spec=self.spec.model_dump(mode="json"),
            priority=self.spec.runtime.priority,
            max_attempts=self.spec.runtime.max_attempts,
            labels=dict(self.spec.labels),
            fence=fence,
        )


class Outcome(_Document):
    """How a job ended.

    Attributes:
        fence: Fence of the claim that committed; 0 if no worker did (a cancelled queued job).
        finished_at: Unix seconds.
    """

    state: Finished
    error: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    fence: int = 0
    finished_at: float


class Journal:
    """The durable record of all jobs, under one store (a bucket prefix, or a directory).

    Methods raise `StorageError` and its kinds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def write_spec(self, job_id: str, entry: JournalEntry) -> bool:
        """Record what was asked. False, and nothing written, if the job is already there."""
        return self._put(_spec_key(job_id), entry)

    def read_spec(self, job_id: str) -> JournalEntry | None:
        """What was asked, or None if there is no such job."""
        return self._get(_spec_key(job_id), JournalEntry)

    def write_outcome(self, job_id: str, outcome: Outcome) -> bool:
        """Commit how the job ended. False if somebody else already did; theirs stands."""
        return self._put(_outcome_key(job_id), outcome)

    def read_outcome(self, job_id: str) -> Outcome | None:
        """How the job ended, or None while it has not."""
        return self._get(_outcome_key(job_id), Outcome)

    def jobs(self) -> dict[str, bool]:
        """Every journalled job, and whether its outcome is journalled: for rebuilds only.

        Lists the whole prefix, a thousand objects a request; reads nothing.
        """
        asked, ended = set(), set()
        for info in self._store.list(_ROOT):
            job_id, slash, name = info.key.removeprefix(_ROOT).partition("/")
            if slash + name == _SPEC:
                asked.add(job_id)
            elif slash + name == _OUTCOME:
                ended.add(job_id)
        return {job_id: job_id in ended for job_id in asked}

    def workspace(self, job_id: str) -> Store:
        """Where the job's attempts keep their finished units."""
        return self._store.child(f"{_WORKSPACES}{job_id}")

    def ping(self) -> None:
        """Return if the store answers and its bucket exists; for readiness probes."""
        next(iter(self._store.list(f"{_ROOT}.readiness")), None)

    def _put(self, key: str, document: _Document) -> bool:
        data = document.model_dump_json().encode()
        # A write whose answer got lost is repeated below us and then finds its own bytes.
        return self._store.put_if_absent(key, data) or bytes(self._store.read(key)) == data

    def _get(self, key: str, kind: type[_D]) -> _D | None:
        if self._store.stat(key) is None:
            return None
        try:
            return kind.model_validate_json(bytes(self._store.read(key)))
        except ValidationError as error:
            raise StorageError(f"{key} in the journal is not readable: {error}") from error


def _spec_key(job_id: str) -> str:
    return f"{_ROOT}{job_id}{_SPEC}"


def _outcome_key(job_id: str) -> str:
    return f"{_ROOT}{job_id}{_OUTCOME}"
