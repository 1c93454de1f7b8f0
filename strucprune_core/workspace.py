"""Finished units of a job, kept so that a run can stop anywhere and continue.

Layout under the workspace's root:

    job.json                          fingerprint of the job that owns the workspace
    units/<unit>/manifest.json        written last, with put-if-absent: the unit is finished
    units/<unit>/<nonce>/<file>       the unit's files; a nonce per attempt, never overwritten

A unit is finished exactly when its manifest exists. Two processes that run the same unit write
under different nonces; one manifest wins, and both go on with the winner's files.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strucprune_core.digests import sha256_of
from strucprune_core.errors import (
    ObjectNotFound,
    StorageUnavailable,
    WorkspaceMismatch,
)
from strucprune_core.storage.store import Store

_OWNER = "job.json"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A unit's file: its key in the workspace, size and SHA-256 (hex)."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of a finished unit.

    Attributes:
        unit: Name of the unit.
        files: Its files by name.
        values: Small results, JSON.
        seconds: Time it took.
        host_peak_bytes: Peak of the process's anonymous memory while it ran.
        device_peak_bytes: Peak of device allocations, None where the device is not measured.
    """

    unit: str
    files: dict[str, StoredFile]
    values: dict[str, Any]
    seconds: float
    host_peak_bytes: int
    device_peak_bytes: int | None

    def to_json(self) -> bytes:
        """Canonical bytes."""
        body = {
            "unit": self.unit,
            "files": {
                name: {"key": f.key, "bytes": f.bytes, "sha256": f.sha256}
                for name, f in sorted(self.files.items())
            },
            "values": self.values,
            "seconds": self.seconds,
            "host_peak_bytes": self.host_peak_bytes,
            "device_peak_bytes": self.device_peak_bytes,
        }
        return json.dumps(body, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse what `to_json` wrote."""
        body = json.loads(data)
        files = {name: StoredFile(**entry) for name, entry in body.pop("files").items()}
        return cls(files=files, **body)


@dataclass(slots=True)
class Draft:
    """A unit being computed: put files into `directory` and results into `values`."""

    directory: Path
    values: dict[str, Any] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where to write the file `name`."""
        return self.directory / name


class Workspace:
    """The finished units of one job, in a store, with a local scratch directory for files."""

    def __init__(self, store: Store, scratch: Path, fingerprint: str) -> None:
        """Open a workspace, claiming it for the job if it is new.

        Raises:
            WorkspaceMismatch: it belongs to a job with another specification or model.
        """
        self._store = store
        self._scratch = scratch
        self._manifests: dict[str, Manifest] = {}
        self._local: dict[str, Path] = {}
        scratch.mkdir(parents=True, exist_ok=True)
        self._claim(fingerprint)
        self._present = {info.key: info.size_bytes for info in store.list("units/")}

    def _claim(self, fingerprint: str) -> None:
        mine = json.dumps({"fingerprint": fingerprint}).encode()
        if self._store.put_if_absent(_OWNER, mine):
            return
        if bytes(self._store.read(_OWNER)) != mine:
            raise WorkspaceMismatch(
                f"the workspace {self._store.uri} holds another job's units "
                "(its model, pruning, calibration or evaluation differs)",
                remedy="Choose another workspace, or repeat the command that began this one.",
            )

    def manifest(self, unit: str) -> Manifest | None:
        """The unit's manifest if it is finished, else None."""
        if unit not in self._manifests:
            key = _manifest_key(unit)
            if key not in self._present:
                return None
            self._manifests[unit] = Manifest.from_json(bytes(self._store.read(key)))
        return self._manifests[unit]

    def values(self, unit: str) -> dict[str, Any]:
        """Small results of a finished unit."""
        manifest = self.manifest(unit)
        if manifest is None:
            raise LookupError(f"unit {unit} is not finished")
        return manifest.values

    def has_file(self, unit: str, name: str) -> bool:
        """Whether a finished unit's file is there in full (it may have been released)."""
        manifest = self.manifest(unit)
        if manifest is None or name not in manifest.files:
            return False
        entry = manifest.files[name]
        return self._present.get(entry.key) == entry.bytes

    def file(self, unit: str, name: str) -> Path:
        """A finished unit's file on this machine, verified when it was not written here.

        Raises:
            StorageUnavailable: its bytes are not those that the unit wrote, which is forgotten;
                or they are gone. The next attempt computes the unit again.
        """
        manifest = self.manifest(unit)
        if manifest is None:
            raise LookupError(f"unit {unit} is not finished")
        entry = manifest.files[name]
        if entry.key not in self._local:
            path = self._fetch(entry.key)
            if sha256_of(path) != entry.sha256:
                self.forget(unit)
                raise StorageUnavailable(
                    f"{entry.key} in the workspace {self._store.uri} is damaged",
                    remedy="Start the job again with the same workspace: the unit is recomputed.",
                )
            self._local[entry.key] = path
        return self._local[entry.key]

    def _fetch(self, key: str) -> Path:
        """The file on this machine, downloaded if need be."""
        path = self._store.local_path(key)
        if path is not None:
            return path
        path = self._scratch / key
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store.download(key, path)
        except ObjectNotFound as error:
            raise StorageUnavailable(
                f"{key} is gone from the workspace {self._store.uri}: it was deleted, or another "
                "process is at work on the same job",
                remedy="Start the job again with the same workspace: it goes on from there.",
            ) from error
        return path

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """A scratch directory for a unit's files, removed at the end: `commit` has stored them."""
        directory = self._scratch / f"draft-{secrets.token_hex(8)}"
        directory.mkdir(parents=True)
        try:
            yield Draft(directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def commit(
        self,
        unit: str,
        draft: Draft,
        *,
        seconds: float,
        host_peak_bytes: int,
        device_peak_bytes: int | None,
    ) -> Manifest:
        """Store a unit's files and then its manifest. Returns the manifest that counts."""
        nonce = secrets.token_hex(8)
        files: dict[str, StoredFile] = {}
        for path in sorted(draft.directory.iterdir()):
            key = f"units/{unit}/{nonce}/{path.name}"
            self._store.upload(key, path)
            files[path.name] = StoredFile(key, path.stat().st_size, sha256_of(path))
            self._keep_local(key, path)
        manifest = Manifest(unit, files, draft.values, seconds, host_peak_bytes, device_peak_bytes)
        key = _manifest_key(unit)
        if not self._store.put_if_absent(key, manifest.to_json()):
            manifest = Manifest.from_json(bytes(self._store.read(key)))  # Another process won.
        self._present[key] = 0
        self._present.update({entry.key: entry.bytes for entry in manifest.files.values()})
        self._manifests[unit] = manifest
        return manifest

    def _keep_local(self, key: str, path: Path) -> None:
        """Spare a later download: keep what was just uploaded, unless the store is local."""
        if self._store.local_path(key) is not None:
            return
        kept = self._scratch / key
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.replace(kept)
        self._local[key] = kept

    def release(self, unit: str, name: str) -> None:
        """Delete a file that no pending unit needs. The unit stays finished."""
        manifest = self.manifest(unit)
        if manifest is None or name not in manifest.files:
            return
        key = manifest.files[name].key
        local = self._local.pop(key, None)
        if local is not None:
            local.unlink(missing_ok=True)
        if key in self._present:
            self._store.delete(key)
            del self._present[key]

    def forget(self, unit: str) -> None:
        """Make a finished unit unfinished.

        One that this process never saw finished is left alone: if it is by now, another process
        did it, and `commit` will go on with that one's files.
        """
        self._manifests.pop(unit, None)
        if self._present.pop(_manifest_key(unit), None) is not None:
            self._store.delete(_manifest_key(unit))


def _manifest_key(unit: str) -> str:
    return f"units/{unit}/manifest.json"
