"""The journal: the durable documents of jobs, in object storage. They survive a loss of Redis.

jobs/{job_id}/spec.json      the request; written once, before the client gets its 202
jobs/{job_id}/outcome.json   how run 1 ended; writing it *is* the commit, and the first writer wins
jobs/{job_id}/sequel-1.json  what followed that end, if anything: a retry or the deletion
jobs/{job_id}/outcome-2.json how the retry (run 2) ended; sequel-2.json may follow, and so on
jobs/{job_id}/archived-1-9.json  record of run 1, which ended at second 9, once it left the ledger
workspaces/{job_id}/         finished units of work, from which another attempt continues
sharing/{job_id}/{other_id}  of a workspace that several jobs use: one of them, itself included
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.jobs.ledger import Finished
from api.jobs.record import JobRecord, NewJob, Times, place_of
from strucprune_core.errors import ObjectNotFound, StorageError
from strucprune_core.spec import JobSpec
from strucprune_core.storage.store import Store

_ROOT = "jobs/"
# Not below `_ROOT`, so that listing all jobs does not list their workspaces.
_WORKSPACES = "workspaces/"
_SHARING = "sharing/"
_SPEC = "spec.json"
_OUTCOME = re.compile(r"outcome(?:-(\d{1,9}))?\.json")
_ARCHIVED = re.compile(r"archived-(\d{1,9})-(\d{1,12})\.json")
_SEQUEL = re.compile(r"sequel-(\d{1,9})\.json")


# 128 bits, so that ids do not collide and cannot be guessed.
ID_HEX_DIGITS = 32


def new_id() -> str:
    """An id that no job has."""
    return f"job_{secrets.token_hex(ID_HEX_DIGITS // 2)}"


class _Document(BaseModel):
    # Fields of a newer release are ignored, so that a rollback can read the journal.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: Literal[1] = 1


_D = TypeVar("_D", bound=_Document)


class JournalEntry(_Document):
    """The request for a job.

    Attributes:
        fingerprint: SHA-256 (hex) of the whole request: distinguishes a replay from a reused key.
        created_at: Unix seconds.
        scratch_bytes: See `NewJob`.
        extends: The job whose measurements this one goes on from, if any.
        workspace_of: The job whose workspace this one works in, if not in its own.
        predicted: See `NewJob`.
    """

    tenant: str
    spec: JobSpec
    fingerprint: str
    created_at: float
    scratch_bytes: int = 0
    extends: str | None = None
    workspace_of: str | None = None
    predicted: Times = Field(default_factory=dict)

    def as_new_job(self, job_id: str, *, fence: int = 0, run: int = 1) -> NewJob:
        """This entry as a job for the ledger."""
        return NewJob(
            id=job_id,
            tenant=self.tenant,
            fingerprint=self.fingerprint,
            created_at=self.created_at,
            spec=self.spec.model_dump(mode="json"),
            priority=self.spec.runtime.priority,
            max_attempts=self.spec.runtime.max_attempts,
            max_workers=self.spec.runtime.max_workers,
            labels=dict(self.spec.labels),
            deadline_seconds=self.spec.runtime.deadline_seconds,
            scratch_bytes=self.scratch_bytes,
            output=place_of(self.spec.output.uri_prefix),
            extends=self.extends,
            workspace_of=self.workspace_of,
            predicted=self.predicted,
            fence=fence,
            run=run,
        )


class Outcome(_Document):
    """How a run of a job ended.

    Attributes:
        run: Number of the run; 1 unless the job was retried.
        fence: Fence of the claim that committed it; 0 if no worker did (a cancelled queued job).
        finished_at: Unix seconds.
    """

    state: Finished
    error: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    run: int = 1
    fence: int = 0
    finished_at: float


class Archived(_Document):
    """The record of a job whose newest run has ended, as the ledger had it."""

    record: JobRecord


class Sequel(_Document):
    """What follows the end of a run: the job runs again, or is removed.

    Both use one document, so that put-if-absent allows only one of them (see `sequel`).

    Attributes:
        at: Unix seconds, by the ledger's clock.
        outputs: Whether a deletion includes the files that the job published.
    """

    kind: Literal["retry", "deletion"]
    at: float
    outputs: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands, by the names of its documents alone.

    Attributes:
        asked: Whether its spec exists.
        run: The run after the newest sequel; it has begun only if that sequel is a retry.
        ended: Whether that run's outcome exists.
        archived_at: When that run ended (unix seconds, by the ledger's clock), if the ledger no
            longer has it.
    """

    asked: bool
    run: int = 1
    ended: bool = False
    archived_at: int | None = None


class Journal:
    """The durable documents of all jobs, in one store (a bucket prefix, or a directory).

    Methods raise `StorageError` and its kinds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def write_spec(self, job_id: str, entry: JournalEntry) -> bool:
        """Write the request. False, and nothing written, if the job exists already."""
        return self._put(_spec_key(job_id), entry)

    def read_spec(self, job_id: str) -> JournalEntry | None:
        """The request, or None if there is no such job."""
        return self._get(_spec_key(job_id), JournalEntry)

    def write_outcome(self, job_id: str, outcome: Outcome) -> bool:
        """Commit how a run ended. False if another outcome exists, which then stands."""
        return self._put(_outcome_key(job_id, outcome.run), outcome)

    def read_outcome(self, job_id: str, run: int = 1) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._get(_outcome_key(job_id, run), Outcome)

    def write_sequel(self, job_id: str, run: int, sequel: Sequel) -> bool:
        """Commit what follows the end of a run. False if another sequel exists."""
        return self._put(_sequel_key(job_id, run), sequel)

    def read_sequel(self, job_id: str, run: int) -> Sequel | None:
        """What followed the end of a run, or None."""
        return self._get(_sequel_key(job_id, run), Sequel)

    def write_archived(self, record: JobRecord) -> None:
        """Write the record of an ended job that is about to leave the ledger."""
        self._put(_archived_key(record.id, record.run, _ended_at(record)), Archived(record=record))

    def read_archived(self, job_id: str, standing: Standing) -> JobRecord | None:
        """The record of a job that has left the ledger, or None. `standing` is how it stands."""
        if standing.archived_at is None:
            return None
        key = _archived_key(job_id, standing.run, standing.archived_at)
        document = self._get(key, Archived)
        return None if document is None else document.record

    def standing(self, job_id: str) -> Standing:
        """How the job stands. Makes one listing."""
        root = f"{_ROOT}{job_id}/"
        return _standing(info.key.removeprefix(root) for info in self._store.list(root))

    def jobs(self) -> dict[str, Standing]:
        """How every job stands of which a document exists. For rebuilds only.

        Lists the whole prefix, a thousand objects a request, and reads no object.
        """
        found: dict[str, list[str]] = {}
        for info in self._store.list(_ROOT):
            job_id, _, name = info.key.removeprefix(_ROOT).partition("/")
            found.setdefault(job_id, []).append(name)
        return {job_id: _standing(names) for job_id, names in found.items()}

    def remove(self, job_id: str, run: int) -> None:
        """Remove all of a job except the sequel of run `run`, the spec last.

        A workspace that other jobs use stays until the last of them is removed.
        """
        entry = self.read_spec(job_id)
        self._leave_workspace(job_id if entry is None else entry.workspace_of or job_id, job_id)
        kept = {_spec_key(job_id), _sequel_key(job_id, run)}
        self._clear(f"{_ROOT}{job_id}/", kept)
        self._store.delete(_spec_key(job_id))

    def share_workspace(self, owner: str, job_id: str) -> None:
        """Note that job `job_id`, whose spec is written next, works in the workspace of `owner`."""
        for user in (owner, job_id):
            self._store.put(f"{_SHARING}{owner}/{user}", b"")

    def _leave_workspace(self, owner: str, job_id: str) -> None:
        """Remove a workspace once no job uses it.

        Each job removes its own note first, and then looks for others. So of jobs that are removed
        at the same time, the last one finds none. A note without a job is of a submission that came
        to nothing.
        """
        notes = f"{_SHARING}{owner}/"
        self._store.delete(f"{notes}{job_id}")
        users = [info.key.removeprefix(notes) for info in self._store.list(notes)]
        if not any(self._store.stat(_spec_key(user)) is not None for user in users):
            self._clear(f"{_WORKSPACES}{owner}/")
            self._clear(notes)

    def _clear(self, prefix: str, kept: Collection[str] = ()) -> None:
        for info in [*self._store.list(prefix)]:
            if info.key not in kept:
                self._store.delete(info.key)

    def remove_sequel(self, job_id: str, run: int) -> None:
        """Remove the sequel, which is the last document of a deleted job."""
        self._store.delete(_sequel_key(job_id, run))

    def workspace(self, job_id: str) -> Store:
        """Where the job's attempts keep their finished units."""
        return self._store.child(f"{_WORKSPACES}{job_id}")

    def ping(self) -> None:
        """Return if the store answers and its bucket exists. For readiness probes."""
        next(iter(self._store.list(f"{_ROOT}.readiness")), None)

    def _put(self, key: str, document: _Document) -> bool:
        data = document.model_dump_json().encode()
        # The store repeats a write whose answer was lost, and may then find our own bytes.
        if self._store.put_if_absent(key, data):
            return True
        try:
            return bytes(self._store.read(key)) == data
        except ObjectNotFound:
            return False  # The other document is gone already: the job is being deleted.

    def _get(self, key: str, kind: type[_D]) -> _D | None:
        try:
            return kind.model_validate_json(bytes(self._store.read(key)))
        except ObjectNotFound:
            return None
        except ValidationError as error:
            raise StorageError(f"{key} in the journal is not readable: {error}") from error


def _spec_key(job_id: str) -> str:
    return f"{_ROOT}{job_id}/{_SPEC}"


def _outcome_key(job_id: str, run: int) -> str:
    return f"{_ROOT}{job_id}/outcome.json" if run == 1 else f"{_ROOT}{job_id}/outcome-{run}.json"


def _sequel_key(job_id: str, run: int) -> str:
    return f"{_ROOT}{job_id}/sequel-{run}.json"


def _archived_key(job_id: str, run: int, ended_at: int) -> str:
    return f"{_ROOT}{job_id}/archived-{run}-{ended_at}.json"


def _ended_at(record: JobRecord) -> int:
    return max(0, int(record.finished_at or record.updated_at))


def _standing(names: Iterable[str]) -> Standing:
    asked, run, ended, archived = False, 1, set[int](), dict[int, int]()
    for name in names:
        if name == _SPEC:
            asked = True
        elif match := _OUTCOME.fullmatch(name):
            ended.add(int(match.group(1) or 1))
        elif match := _ARCHIVED.fullmatch(name):
            archived[int(match.group(1))] = int(match.group(2))
        elif match := _SEQUEL.fullmatch(name):
            run = max(run, int(match.group(1)) + 1)
    return Standing(asked, run, run in ended, archived.get(run))
