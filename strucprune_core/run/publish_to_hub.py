"""Copies a finished result to a Hugging Face hub, as one commit, through `huggingface_hub`.

A result is checked against its manifest before anything is sent, and again, by the hub's own
listing, once it is there. Files go up one by one; the commit that shows them is the last step, so
a run that breaks off leaves the repository as it was. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.errors import (
    AccessDenied,
    InvalidSpec,
    OutputNotEmpty,
    StorageError,
    StorageUnavailable,
)
from strucprune_core.report.card import MARK
from strucprune_core.report.document import MANIFEST, FileEntry
from strucprune_core.report.published import altered, published_files
from strucprune_core.storage.digests import sha256_of, sha256_of_bytes
from strucprune_core.storage.hub import open_hub
from strucprune_core.storage.hub_requests import translated
from strucprune_core.storage.store import ObjectInfo, ReadableStore
from strucprune_core.storage.uri import Location

# What a hub or its user puts beside the files of a model; never removed.
KEPT = (".gitattributes", MODEL_CARD)

Tick = Callable[[int, int], None]
"""Called with bytes (done, total) before each file."""


@dataclass(frozen=True, slots=True)
class Published:
    """A result on a hub.

    Attributes:
        uri: `hf://org/name@commit`.
        url: Its page.
        private: Whether only those who may read the repository see it.
        files: How many files the result has.
        total_bytes: Bytes of all of them.
    """

    uri: str
    url: str
    private: bool
    files: int
    total_bytes: int


def publish_to_hub(
    source: ReadableStore,
    target: Location,
    scratch: Path,
    *,
    public: bool = False,
    replace: bool = False,
    tick: Tick = lambda done, total: None,
) -> Published:
    """Copy a finished result to the main branch of a repository, which is made if need be.

    Args:
        source: The output of a finished job.
        target: The repository. A README.md there stays unless StrucPrune wrote it.
        scratch: Local directory for files that do not lie on this machine, one at a time.
        public: Whether everybody may read the repository.
        replace: Whether files of the repository that are none of the result are removed.
        tick: Called before each file.

    Raises:
        InvalidSpec: the target is no model repository.
        InvalidCheckpoint: the source is no finished result, or one of its files was changed.
        OutputNotEmpty: the repository holds other files.
        AccessDenied: the token may not write there; or the repository is public, and `public` is
            false.
        StorageError: a store refused or failed.
    """
    if target.scheme != "hf" or target.key or target.revision or "datasets/" in target.bucket:
        raise InvalidSpec(
            f"'{target}' is not a model repository",
            field="TARGET",
            remedy="Name it without a revision or a path: hf://org/name.",
        )
    entries = [*published_files(source), _manifest_entry(source)]
    disable_progress_bars()
    with _upload_errors(str(target)):
        repository = _Repository(HfApi(endpoint=constants.ENDPOINT), target)
        private, parent, present = repository.opened(public=public)
        _check_others(target, present, replace=replace)
        if MODEL_CARD in present and not _wrote_card(target.at_commit(parent)):
            entries = [entry for entry in entries if entry.name != MODEL_CARD]
        ours = {entry.name for entry in entries}
        gone = sorted(present - ours - set(KEPT))
        added = repository.uploaded(source, entries, scratch, tick)
        commit = repository.committed(added, gone, parent)
    _check_arrived(target.at_commit(commit), entries)
    return Published(
        uri=str(target.at_commit(commit)),
        url=f"{constants.ENDPOINT}/{target.bucket}",
        private=private,
        files=len(entries),
        total_bytes=sum(entry.bytes for entry in entries),
    )


class _Repository:
    """The repository that a result goes to."""

    def __init__(self, api: HfApi, target: Location) -> None:
        self._api, self._target, self._id = api, target, target.bucket

    def opened(self, *, public: bool) -> tuple[bool, str, set[str]]:
        """Whether it is private, the commit of its main branch, and the names of its files."""
        try:
            facts = self._facts()
        except RepositoryNotFoundError:
            self._api.create_repo(self._id, private=not public)
            facts = self._facts()
        if not (facts.private or public):
            raise AccessDenied(
                f"{self._target}: the repository is public",
                remedy="With --public the result is published for everybody; or name another "
                "repository: a new one is private.",
            )
        return bool(facts.private), str(facts.sha), {file.rfilename for file in facts.siblings}

    def _facts(self) -> Any:
        return self._api.model_info(self._id, timeout=60.0)

    def uploaded(
        self, source: ReadableStore, entries: Sequence[FileEntry], scratch: Path, tick: Tick
    ) -> list[CommitOperationAdd]:
        """The files, sent one by one, so that the disk holds one that lies elsewhere at a time."""
        added, done, total = [], 0, sum(entry.bytes for entry in entries)
        for number, entry in enumerate(entries):
            tick(done, total)
            path = source.local_path(entry.name)
            copy = scratch / f"{number}"
            if path is None:
                source.download(entry.name, copy)
            if sha256_of(path or copy) != entry.sha256:
                raise altered(entry)
            operation = CommitOperationAdd(entry.name, str(path or copy))
            # Without a content of its own, a .gitignore of the repository could leave files out.
            self._api.preupload_lfs_files(self._id, [operation], gitignore_content="")
            if operation.path_or_fileobj == str(copy):  # A small file: sent with the commit.
                operation.path_or_fileobj = copy.read_bytes()
            copy.unlink(missing_ok=True)
            added.append(operation)
            done += entry.bytes
        tick(done, total)
        return added

    def committed(
        self, added: Sequence[CommitOperationAdd], gone: Sequence[str], parent: str
    ) -> str:
        """The commit that adds and removes files, if the branch has not moved meanwhile."""
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*added]
        operations += [CommitOperationDelete(name, is_folder=False) for name in gone]
        message = "Add the model pruned by StrucPrune"
        commit = self._api.create_commit(
            self._id, operations, commit_message=message, parent_commit=parent
        )
        return commit.oid


def _wrote_card(target: Location) -> bool:
    """Whether the repository's README.md is one of ours, and nobody has made it their own."""
    return MARK.encode() in bytes(open_hub(target).read(MODEL_CARD))


def _manifest_entry(source: ReadableStore) -> FileEntry:
    data = bytes(source.read(MANIFEST))
    return FileEntry(name=MANIFEST, bytes=len(data), sha256=sha256_of_bytes(data))


def _check_others(target: Location, present: set[str], *, replace: bool) -> None:
    others = sorted(present - set(KEPT))
    if others and not replace:
        raise OutputNotEmpty(
            f"{target} already holds '{others[0]}'",
            remedy="Name another repository; or use --replace: one commit then removes what is "
            "not of this result (a README.md of yours stays), and the history keeps it.",
        )


def _check_arrived(target: Location, entries: Sequence[FileEntry]) -> None:
    """Compare the hub's listing of the new commit with the result.

    Raises:
        StorageError: a file is missing, or another one.
    """
    present = {info.key: info for info in open_hub(target).list()}
    for entry in entries:
        info = present.get(entry.name)
        if info is None or not _is_same(info, entry):
            raise StorageError(
                f"{target}: the hub does not hold {entry.name} as it was sent",
                remedy="Publish again with --replace.",
            )


def _is_same(info: ObjectInfo, entry: FileEntry) -> bool:
    """Whether a hub's file is the one of the result; of small ones, it tells git's digest."""
    is_sha256 = len(info.version) == len(entry.sha256)
    return info.size_bytes == entry.bytes and (not is_sha256 or info.version == entry.sha256)


@contextmanager
def _upload_errors(name: str) -> Iterator[None]:
    """Errors of uploads, which come from several libraries, as typed ones."""
    with translated(name):
        try:
            yield
        except (HfHubHTTPError, OfflineModeIsEnabled):
            raise
        except (RuntimeError, ValueError, OSError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
            if cause is not None:
                raise cause from error
            raise StorageUnavailable(
                f"{name}: the upload failed, and nothing was committed: {error.__cause__ or error}",
                remedy="Publish again: what has arrived is not sent a second time.",
            ) from error
