"""Removing what a job has published, and nothing else.

An output prefix is the job's own if the report there is the one that the job claimed it with, which
its workspace remembers. Another job that found the prefix empty since, or that this one found
there, has another report. Report and manifest go last, in this order: a removal that is cut short
can go on, and never takes a complete output for an incomplete one.
"""

from __future__ import annotations

from pydantic import ValidationError

from strucprune_core.errors import ObjectNotFound
from strucprune_core.report.document import MANIFEST, REPORT_HTML, REPORT_JSON, PublishedManifest
from strucprune_core.run.workspace import CLAIM
from strucprune_core.storage.store import Store


def remove_published(output: Store, workspace: Store) -> bool:
    """Remove the files of one job from its output prefix.

    Of a complete output those that its manifest names; of an incomplete one all there is, since the
    prefix was empty when the job claimed it.

    Args:
        output: The output prefix.
        workspace: The job's workspace.

    Returns:
        False, with nothing removed, if the prefix is not the job's.

    Raises:
        StorageError: a store does not answer or forbids it.
    """
    claim = _read(workspace, CLAIM)
    if claim is None or _read(output, REPORT_JSON) != claim:
        return False
    last = (REPORT_JSON, MANIFEST)
    for name in (*sorted(_names(output) - {*last}), *last):
        output.delete(name)
    return True


def _names(output: Store) -> set[str]:
    present = {info.key for info in output.list()}
    manifest = _read(output, MANIFEST)
    if manifest is None:
        return present
    try:
        files = PublishedManifest.model_validate_json(manifest).files
    except ValidationError:
        return present
    # Only what is there: names in the user's bucket may have been edited to point elsewhere.
    return present & {MANIFEST, REPORT_HTML, *(entry.name for entry in files)}


def _read(store: Store, key: str) -> bytes | None:
    try:
        return bytes(store.read(key))
    except ObjectNotFound:
        return None
