"""The last step: copy an accepted checkpoint and its report to the output, manifest last.

The output stays empty until every check has passed. Publishing may die anywhere and be repeated by
another process: every file is the same bytes each time. `report.json` goes first and claims the
prefix; `strucprune.json`, the list of all files with their digests, goes last and says "complete".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from strucprune_core.errors import ObjectNotFound, OutputNotEmpty
from strucprune_core.report.document import MANIFEST, REPORT_JSON, FileEntry, PublishedManifest
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.overlay import OverlayStore
from strucprune_core.storage.store import Store

CLAIM = REPORT_JSON


def publish(
    output: Store,
    checkpoint: OverlayStore,
    entries: Sequence[FileEntry],
    documents: Mapping[str, bytes],
    tick: Callable[[int, int], None],
) -> None:
    """Write all files to the output.

    Args:
        output: Where they go.
        checkpoint: The assembled checkpoint.
        entries: Its files with their digests.
        documents: report.json and what else goes with it, by name.
        tick: Told bytes (done, total) before each file and during large ones: safe points to stop
            at, since the same job may publish again.

    Raises:
        OutputNotEmpty: another job has published here.
    """
    claim = documents[CLAIM]
    if not output.put_if_absent(CLAIM, claim) and claim_of(output) != claim:
        raise OutputNotEmpty(
            f"another job published to {output.uri} first",
            field="output.uri_prefix",
            remedy="Submit the job again with a new output prefix.",
        )
    before, total = 0, sum(entry.bytes for entry in entries)

    def at(before: int, done: int) -> None:
        tick(before + done, total)

    for entry in entries:
        at(before, 0)
        if entry.name in checkpoint.paths:
            output.upload(entry.name, checkpoint.paths[entry.name], partial(at, before))
        else:
            output.put(entry.name, checkpoint.contents[entry.name])
        before += entry.bytes
    at(total, 0)
    for name, data in documents.items():
        if name != CLAIM:
            output.put(name, data)
    output.put(MANIFEST, _manifest(entries, documents))


def claim_of(output: Store) -> bytes | None:
    """The report that the output is claimed with, None if there is none."""
    try:
        return bytes(output.read(CLAIM))
    except ObjectNotFound:
        return None


def _manifest(entries: Sequence[FileEntry], documents: Mapping[str, bytes]) -> bytes:
    files = list(entries)
    for name, data in sorted(documents.items()):
        files.append(FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data)))
    manifest = PublishedManifest(format_version=1, files=files)
    return (manifest.model_dump_json(indent=2) + "\n").encode()
