"""Finished units of a job, kept so that a run can stop anywhere and continue.

Layout under the workspace's root:

    job.json                          fingerprint of the job that owns the workspace
    reservations/<output>.json        the report that publishing to an output began with
    units/<unit>/manifest.json        written last, with put-if-absent: the unit is finished
    units/<unit>/<nonce>/<file>       the unit's files; a nonce per attempt, never overwritten
    units/<unit>/<nonce>/<file>.<seal>   the same, handed on before the unit is finished

A unit is finished exactly when its manifest exists. Two processes that run the same unit write
under different nonces; one manifest wins, and both go on with the winner's files.

A file that is handed on has no manifest yet that holds its digest. So its key ends with a seal of
its bytes. What an attempt that died has handed on may be read: an object is there whole, or not.

Nothing here is irreplaceable, so nothing is believed: manifests carry a seal, files a digest. What
does not fit counts as not there, and is computed again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strucprune_core.errors import (
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    WorkspaceMismatch,
)
from strucprune_core.method.linalg.transfers import NOTHING, Transferred
from strucprune_core.run.manifest import Manifest, StoredFile
from strucprune_core.scratch.directories import scratch_errors
from strucprune_core.storage.digests import sha256_of, sha256_of_bytes
from strucprune_core.storage.store import Store, Tick, ignore_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

OWNER = "job.json"


def reservation_key(output_uri: str) -> str:
    """Where the report is kept that publishing to an output began with."""
    return f"reservations/{sha256_of_bytes(output_uri.encode())[:32]}.json"


class LostFile(StorageUnavailable):
    """Something that a finished unit left is damaged or gone. `refresh`, and do what is pending.

    Args:
        message: What is lost, and where.
        unit: The unit that left it.
    """

    def __init__(self, message: str, unit: str) -> None:
        super().__init__(
            message,
            remedy="Start the job again with the same workspace: what was lost is recomputed.",
        )
        self.unit = unit


@dataclass(slots=True)
class Draft:
    """A unit being computed: put files into `directory` and results into `values`.

    Attributes:
        nonce: Names the attempt.
        hand_on: Called by steps with the name of a file that is complete, so that units that follow
            this one may read it.
        handed_on: Files that are stored already, by name.
    """

    directory: Path
    values: dict[str, Any] = field(default_factory=dict)
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    hand_on: Callable[[str], None] = lambda name: None
    handed_on: dict[str, StoredFile] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Where to write the file `name`."""
        return self.directory / name

    def record(self, values: DataclassInstance) -> None:
        """Add small results: a dataclass of `run.artifacts`."""
        self.values |= asdict(values)


@dataclass(frozen=True, slots=True)
class Stored:
    """A unit that is finished in the store, and that its workspace does not know of yet.

    Attributes:
        manifest: The one that counts: another process may have been first.
        local: Files that were kept on this machine, by key.
        is_same: Whether it holds the bytes and values that were to be stored.
    """

    manifest: Manifest
    local: dict[str, Path]
    is_same: bool = True


class Workspace:
    """The finished units of one job, in a store, with a local scratch directory for files.

    It belongs to one thread, but for `store` and `hand_on`, which leave it alone.
    """

    def __init__(
        self,
        store: Store,
        scratch: Path,
        fingerprint: str,
        *,
        versions: Callable[[str], str] = lambda unit: "",
        on_upload: Tick = ignore_bytes,
        on_download: Tick = ignore_bytes,
    ) -> None:
        """Open a workspace; a new one belongs to the job from now on.

        Args:
            store: Where it lies.
            scratch: Local directory for files.
            fingerprint: Identifies the job.
            versions: What a unit depends on beside that, and what may change between two runs of
                the job: a unit that was computed from another version is not finished.
            on_upload: Called now and then while a unit's file is written, in the thread of `store`.
            on_download: Called now and then while a file is fetched.

        Raises:
            WorkspaceMismatch: it belongs to a job with another specification or model.
        """
        self._store = store
        self._scratch = scratch
        self._fingerprint = fingerprint
        self._versions = versions
        self._on_upload = on_upload
        self._on_download = on_download
        self._manifests: dict[str, Manifest] = {}
        self._local: dict[str, Path] = {}
        self._held: dict[str, Draft] = {}
        with scratch_errors("a directory"):
            scratch.mkdir(parents=True, exist_ok=True)
        self._take_possession()
        self.refresh()

    def _take_possession(self) -> None:
        mine = _owner(self._fingerprint)
        if self._store.put_if_absent(OWNER, mine):
            return
        present = bytes(self._store.read(OWNER))
        if present == mine:
            return
        if _is_owner(present):
            raise WorkspaceMismatch(
                f"the workspace {self._store.uri} holds another job's units "
                "(its pruning, calibration or evaluation differs, or the model's files were "
                "written again since)",
                remedy="Choose another workspace, or repeat the command that began this one.",
            )
        log.warning("replacing damaged %s in workspace %s", OWNER, self._store.uri)
        self._store.put(OWNER, mine)

    def refresh(self) -> None:
        """Look at what is there now: what was lost, and what other processes have done."""
        self._manifests.clear()
        self._present = {info.key: info.size_bytes for info in self._store.list("units/")}

    def look(self, unit: str) -> bool:
        """Look again at one unit: whether it is finished by now."""
        self._manifests.pop(unit, None)
        for key in self._keys_of(unit):
            del self._present[key]
        listed = self._store.list(f"units/{unit}/")
        self._present.update({info.key: info.size_bytes for info in listed})
        return self.manifest(unit) is not None

    def manifest(self, unit: str) -> Manifest | None:
        """The unit's manifest if it is finished, else None."""
        if unit not in self._manifests:
            key = _manifest_key(unit)
            if key not in self._present:
                return None
            manifest = self._stored_manifest(unit)
            if manifest is None:
                self._discard(unit)
                return None
            self._manifests[unit] = manifest
        return self._manifests[unit]

    def _stored_manifest(self, unit: str) -> Manifest | None:
        """The manifest in the store, None if it is gone, damaged, or not of this job."""
        try:
            body = json.loads(bytes(self._store.read(_manifest_key(unit))))
            seal = body.pop("seal")
            manifest = Manifest.from_body(body)
        except (ObjectNotFound, ValueError, KeyError, TypeError, AttributeError):
            return None
        return manifest if seal == self._seal(manifest) and manifest.unit == unit else None

    def _sealed(self, manifest: Manifest) -> bytes:
        return json.dumps({**manifest.body(), "seal": self._seal(manifest)}).encode()

    def _seal(self, manifest: Manifest) -> str:
        """A digest that only this very manifest has, and only in this job on these texts."""
        read_back = json.loads(json.dumps(manifest.body()))  # Keys of `values` become text.
        body = json.dumps(read_back, sort_keys=True)
        versions = self._versions(manifest.unit)
        return sha256_of_bytes(f"{self._fingerprint} {versions} {body}".encode())

    def _finished(self, unit: str) -> Manifest:
        manifest = self.manifest(unit)
        if manifest is None:
            raise LookupError(f"unit {unit} is not finished")
        return manifest

    def values(self, unit: str) -> dict[str, Any]:
        """Small results of a finished unit, or of one that is held."""
        if unit in self._held:
            return self._held[unit].values
        return self._finished(unit).values

    def stored_file(self, unit: str, name: str) -> StoredFile:
        """The record of a finished unit's file."""
        return self._finished(unit).files[name]

    def has_file(self, unit: str, name: str) -> bool:
        """Whether a finished unit's file is there in full (it may have been released)."""
        if unit in self._held:
            return self._held[unit].path(name).exists()
        manifest = self.manifest(unit)
        if manifest is None or name not in manifest.files:
            return False
        entry = manifest.files[name]
        return self._present.get(entry.key) == entry.bytes

    def file(self, unit: str, name: str) -> Path:
        """A finished unit's file on this machine, verified when it was not written here.

        Raises:
            LostFile: its bytes are not those that the unit wrote, which is therefore forgotten; or
                it is gone. That may be right: another process at work on the same job releases
                what it needs no more.
        """
        if unit in self._held:
            return self._held[unit].path(name)
        entry = self.stored_file(unit, name)
        path = self._local.get(entry.key)
        if path is None or not path.exists():
            path = self._fetch(unit, entry.key)
            if sha256_of(path) != entry.sha256:
                self.forget(unit)
                raise LostFile(f"{entry.key} in the workspace {self._store.uri} is damaged", unit)
            self._local[entry.key] = path
        return path

    def handed_on(self, unit: str, name: str) -> tuple[Path, str | None] | None:
        """A file that a unit has left, or has handed on though it is not finished.

        As far as is known of the unit: see `look`.

        Returns:
            Where it is on this machine, and its SHA-256, which is None if the unit is held: `store`
            sees to it that others finish it with the same bytes. None if it is not there.

        Raises:
            LostFile: the unit is finished, and the file is damaged or gone.
        """
        if unit in self._held:
            return self._held[unit].path(name), None
        if self.manifest(unit) is not None:
            return self.file(unit, name), self.stored_file(unit, name).sha256
        start = f"{name}."
        for key in sorted(self._keys_of(unit)):
            _, _, file = key.rpartition("/")
            if not file.startswith(start):
                continue
            with contextlib.suppress(LostFile):  # Its unit has just been finished, perhaps.
                path = self._local.get(key) or self._fetch(unit, key)
                sha256 = sha256_of(path)
                if file == start + self._file_seal(unit, name, sha256):
                    self._local[key] = path
                    return path, sha256
        return None

    def has_handed_on(self, unit: str, name: str) -> bool:
        """Whether `handed_on` would find something, as far as is known without reading it."""
        start = f"{name}."
        return self.has_file(unit, name) or any(
            key.rpartition("/")[2].startswith(start) for key in self._keys_of(unit)
        )

    def _keys_of(self, unit: str) -> list[str]:
        return [key for key in self._present if key.startswith(f"units/{unit}/")]

    def _file_seal(self, unit: str, name: str, sha256: str) -> str:
        """A digest of a file's bytes that only this job on these texts makes."""
        text = f"{self._fingerprint} {self._versions(unit)} {unit} {name} {sha256}"
        return sha256_of_bytes(text.encode())

    def _fetch(self, unit: str, key: str) -> Path:
        """The file on this machine, downloaded if need be."""
        path = self._store.local_path(key)
        if path is not None:
            return path
        path = self._scratch / key
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._store.download(key, path, self._on_download)
        except ObjectNotFound as error:
            raise LostFile(f"{key} is gone from the workspace {self._store.uri}", unit) from error
        return path

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self._store.uri

    @property
    def is_remote(self) -> bool:
        """Whether its files lie on another machine."""
        return self._store.local_path(OWNER) is None

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """A scratch directory for a unit's files, removed at the end: `store` has stored them."""
        directory = self._scratch / f"draft-{secrets.token_hex(8)}"
        directory.mkdir(parents=True)
        try:
            yield Draft(directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def hold(self, unit: str, draft: Draft) -> None:
        """Give out a unit's files and values before it is finished, to this process alone.

        For what is computed while the unit is being stored. `adopt` or `withdraw` ends it.
        """
        kept = self._scratch / "units" / unit / draft.nonce
        kept.parent.mkdir(parents=True, exist_ok=True)
        draft.directory = draft.directory.replace(kept)
        self._held[unit] = draft

    def withdraw(self, unit: str) -> None:
        """Remove what is held of a unit, which was not stored."""
        draft = self._held.pop(unit, None)
        if draft is not None:
            shutil.rmtree(draft.directory, ignore_errors=True)

    def drop_local(self, unit: str, name: str) -> None:
        """Remove this machine's copy of a file that the store has."""
        manifest = self._manifests.get(unit)
        if manifest is not None and name in manifest.files:
            path = self._local.pop(manifest.files[name].key, None)
            if path is not None:
                path.unlink(missing_ok=True)

    def store(
        self,
        unit: str,
        draft: Draft,
        *,
        seconds: float,
        host_peak_bytes: int,
        device_peak_bytes: int | None,
        transferred: Transferred = NOTHING,
    ) -> Stored:
        """Store a unit's files and then its manifest. For any thread; see `adopt`.

        If a file cannot be stored, none of them stays.
        """
        files: dict[str, StoredFile] = {}
        local: dict[str, Path] = {}
        try:
            for path in sorted(draft.directory.iterdir()):
                name = path.name
                key = place = f"units/{unit}/{draft.nonce}/{name}"
                if name in draft.handed_on:
                    files[name] = draft.handed_on[name]
                    key = files[name].key
                else:
                    files[name] = StoredFile(key, path.stat().st_size, sha256_of(path))
                    self._store.upload(key, path, self._on_upload)
                if self._store.local_path(key) is None:  # Spare a later download.
                    local[key] = self._keep(place, path)
        except BaseException:
            for entry in (draft.handed_on | files).values():
                if entry.key in local:
                    local[entry.key].unlink(missing_ok=True)
                with contextlib.suppress(StorageError):
                    self._store.delete(entry.key)
            raise
        manifest = Manifest(
            unit, files, draft.values, seconds, host_peak_bytes, device_peak_bytes, transferred
        )
        key = _manifest_key(unit)
        if self._store.put_if_absent(key, self._sealed(manifest)):
            return Stored(manifest, local)
        winner = self._stored_manifest(unit)
        if winner is None:  # What is there is no manifest.
            self._store.put(key, self._sealed(manifest))
            return Stored(manifest, local)
        return Stored(winner, local, is_same=winner.says_the_same_as(manifest))

    def hand_on(self, unit: str, draft: Draft, name: str) -> None:
        """Store one of a unit's files before the unit is finished. For any thread."""
        path = draft.path(name)
        sha256 = sha256_of(path)
        key = f"units/{unit}/{draft.nonce}/{name}.{self._file_seal(unit, name, sha256)}"
        self._store.upload(key, path, self._on_upload)
        draft.handed_on[name] = StoredFile(key, path.stat().st_size, sha256)

    def _keep(self, key: str, path: Path) -> Path:
        """Move what was just uploaded to where it would be downloaded to."""
        kept = self._scratch / key
        kept.parent.mkdir(parents=True, exist_ok=True)
        return path.replace(kept)

    def adopt(self, stored: Stored) -> Manifest:
        """Know a unit as finished from now on. Returns the manifest that counts."""
        manifest = stored.manifest
        self._held.pop(manifest.unit, None)
        self._local |= stored.local
        self._present[_manifest_key(manifest.unit)] = 0
        self._present.update({entry.key: entry.bytes for entry in manifest.files.values()})
        self._manifests[manifest.unit] = manifest
        return manifest

    def release(self, unit: str, name: str) -> None:
        """Delete a file that no pending unit needs, of all attempts. The unit stays finished."""
        if self.manifest(unit) is None:
            return
        for key in self._keys_of(unit):
            file = key.rpartition("/")[2]
            if file == name or file.startswith(f"{name}."):
                local = self._local.pop(key, None)
                if local is not None:
                    local.unlink(missing_ok=True)
                self._store.delete(key)
                del self._present[key]

    def keep_reservation(self, output_uri: str, report: bytes) -> None:
        """Remember the report that an output is about to be reserved with."""
        self._store.put(reservation_key(output_uri), report)

    def reservation(self, output_uri: str) -> bytes | None:
        """What was last kept of an output, damaged or not; None if nothing was."""
        try:
            return bytes(self._store.read(reservation_key(output_uri)))
        except ObjectNotFound:
            return None

    def _discard(self, unit: str) -> None:
        """Remove what is left of a unit whose manifest is not of this job as it is now.

        A process that stores the unit meanwhile may lose a file: the unit is then done again.
        """
        self.forget(unit)
        for key in self._keys_of(unit):
            self._store.delete(key)
            del self._present[key]

    def forget(self, unit: str) -> None:
        """Make a finished unit unfinished.

        One that this process never saw finished is left alone: if it is by now, another process
        did it, and `store` will go on with that one's files.
        """
        self._manifests.pop(unit, None)
        if self._present.pop(_manifest_key(unit), None) is not None:
            self._store.delete(_manifest_key(unit))


def _owner(fingerprint: str) -> bytes:
    seal = sha256_of_bytes(fingerprint.encode())
    return json.dumps({"fingerprint": fingerprint, "seal": seal}).encode()


def _is_owner(data: bytes) -> bool:
    """Whether some job wrote this, and nothing has damaged it."""
    try:
        return _owner(json.loads(data)["fingerprint"]) == data
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _manifest_key(unit: str) -> str:
    return f"units/{unit}/manifest.json"
