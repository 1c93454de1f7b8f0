"""Removes what a job has published, and nothing else.

An output prefix belongs to the job if the report there is the one with which the job reserved it. A
copy of that report is in the job's workspace. The output of another job has another report. Report
and manifest are removed last, in this order, so that an interrupted removal can continue and never
mistakes a complete output for an incomplete one.
"""

from __future__ import annotations

from itertools import islice

from api.jobs.bucket_reads import NotAsWritten, read_manifest, read_small
from strucprune_core.checkpoint.index import MAX_OBJECTS
from strucprune_core.errors import ObjectNotFound
from strucprune_core.report.document import MANIFEST, REPORT_HTML, REPORT_JSON
from strucprune_core.run.workspace import reservation_key
from strucprune_core.storage.store import Store


def remove_published(output: Store, workspace: Store) -> bool:
    """Remove the files of one job from its output prefix.

    Of a complete output, these are the files that its manifest names. Of an incomplete one, they
    are all files, since the prefix was empty when the job reserved it.

    Args:
        output: The output prefix.
        workspace: The workspace that the job worked in.

    Returns:
        False, with nothing removed, if the prefix is not the job's, or it holds far more files
            than a job writes.

    Raises:
        StorageError: a store does not answer or forbids it.
    """
    claim = _claim(workspace, output.uri)
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
    """The files to remove; None if there are more than a job writes."""
    try:
        manifest, _ = read_manifest(output)
        return {MANIFEST, REPORT_HTML, *(entry.name for entry in manifest.files)}
    except NotAsWritten:
        present = {info.key for info in islice(output.list(), MAX_OBJECTS + 1)}
        return present if len(present) <= MAX_OBJECTS else None


def _claim(workspace: Store, output_uri: str) -> bytes | None:
    try:
        return bytes(workspace.read(reservation_key(output_uri)))
    except ObjectNotFound:
        return None


def _is(store: Store, key: str, content: bytes) -> bool:
    """Whether an object has this content. Reads no more than its length."""
    info = store.stat(key)
    if info is None or info.size_bytes != len(content):
        return False
    try:
        return read_small(store, key, len(content)) == content
    except NotAsWritten:
        return False
