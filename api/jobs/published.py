"""Removing what a job has published, and nothing else.

An output prefix is the job's own if the report there is the one that the job claimed it with, which
its workspace remembers. Another job that found the prefix empty since, or that this one found
there, has another report. Report and manifest go last, in this order: a removal that is cut short
can go on, and never takes a complete output for an incomplete one.
"""

from __future__ import annotations

from itertools import islice

from api.jobs.bucket_reads import NotAsWritten, read_manifest, read_small
from strucprune_core.checkpoint.index import MAX_OBJECTS
from strucprune_core.errors import ObjectNotFound
from strucprune_core.report.document import MANIFEST, REPORT_HTML, REPORT_JSON
from strucprune_core.run.workspace import RESERVATION
from strucprune_core.storage.store import Store


def remove_published(output: Store, workspace: Store) -> bool:
    """Remove the files of one job from its output prefix.

    Of a complete output those that its manifest names; of an incomplete one all there is, since the
    prefix was empty when the job claimed it.

    Args:
        output: The output prefix.
        workspace: The job's workspace.

    Returns:
        False, with nothing removed, if the prefix is not the job's, or somebody has put far more
        into it than a job writes.

    Raises:
        StorageError: a store does not answer or forbids it.
    """
    claim = _claim(workspace)
    if claim is None or not _is(output, REPORT_JSON, claim):
        return False
    names = _names(output)
    if names is None:
        return False
    last = (REPORT_JSON, MANIFEST)
    for name in (*sorted(names - {*last}), *last):
        output.delete(name)
    return True


def _names(output: Store) -> set[str] | None:
    """What is to be removed; None if there is more than any job has written."""
    try:
        manifest, _ = read_manifest(output)
        return {MANIFEST, REPORT_HTML, *(entry.name for entry in manifest.files)}
    except NotAsWritten:
        present = {info.key for info in islice(output.list(), MAX_OBJECTS + 1)}
        return present if len(present) <= MAX_OBJECTS else None


def _claim(workspace: Store) -> bytes | None:
    try:
        return bytes(workspace.read(RESERVATION))
    except ObjectNotFound:
        return None


def _is(store: Store, key: str, content: bytes) -> bool:
    """Whether an object of a bucket that is not ours has this content."""
    info = store.stat(key)
    if info is None or info.size_bytes != len(content):
        return False
    try:
        return read_small(store, key, len(content)) == content
    except NotAsWritten:
        return False
