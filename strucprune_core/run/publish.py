"""The last step: copy an accepted checkpoint and its report to the output, manifest last.

The output stays empty until every check has passed. Publishing may die anywhere and be repeated by
another process: every file is the same bytes each time. `report.json` goes first and reserves the
prefix; `strucprune.json`, the list of all files with their digests, goes last and says "complete".

A run that breaks off in between (a full disk, a kill) leaves the reservation and some files. The
next run of the same job goes on from there: it knows the reservation from its workspace, or by the
fingerprint in it where that is gone, and publishes under it if its own files are the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice

from pydantic import ValidationError

from strucprune_core.errors import ObjectNotFound, OutputNotEmpty
from strucprune_core.report.document import (
    MANIFEST,
    REPORT_HTML,
    REPORT_JSON,
    FileEntry,
    PublishedManifest,
)
from strucprune_core.report.sizes import AnyReport, read_report
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.overlay import OverlayStore
from strucprune_core.storage.store import Readable, ReadableStore, Store

# More than any job publishes. A prefix may hold anything until we know that a job filled it.
MAX_FILES, MAX_REPORT_BYTES = 10_000, 64 * 2**20


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
        tick: Called with bytes (done, total) before each file and during large ones: safe points to
            stop at, since the same job may publish again.

    Raises:
        OutputNotEmpty: another job has published here.
    """
    report = documents[REPORT_JSON]
    if not output.put_if_absent(REPORT_JSON, report) and reserving_report(output) != report:
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
        if name != REPORT_JSON:
            output.put(name, data)
    output.put(MANIFEST, manifest_json(entries, documents))


def reserving_report(output: Readable) -> bytes | None:
    """The report that reserves the output, None if there is none."""
    try:
        return bytes(output.read(REPORT_JSON))
    except ObjectNotFound:
        return None


def unfinished(output: ReadableStore, fingerprint: str | None) -> AnyReport | None:
    """The report of a run of this job that broke off while it published; else None.

    None too if anything lies there that such a run does not write.

    Args:
        output: Where it published.
        fingerprint: The job's, as in its reports; None: any job's.
    """
    keys = {info.key for info in islice(output.list(), MAX_FILES)}
    if MANIFEST in keys or REPORT_JSON not in keys or len(keys) == MAX_FILES:
        return None
    info = output.stat(REPORT_JSON)
    if info is None or info.size_bytes > MAX_REPORT_BYTES:
        return None
    try:
        report = read_report(bytes(output.read(REPORT_JSON)))
    except (ValidationError, ObjectNotFound):
        return None
    ours = fingerprint in (None, report.job_fingerprint) and keys <= set(_written(report))
    return report if ours else None


def withdraw(output: Store, report: AnyReport) -> None:
    """Remove what a run left that broke off while it published, its reservation last.

    Only for the job that reserved it, and while no manifest says that the output is complete.
    """
    for name in _written(report):
        output.delete(name)


def _written(report: AnyReport) -> list[str]:
    """What publishing writes before the manifest; the reservation last."""
    return [*(entry.name for entry in report.files), REPORT_HTML, REPORT_JSON]


def manifest_json(entries: Sequence[FileEntry], documents: Mapping[str, bytes]) -> bytes:
    """`strucprune.json` of an output: its files and documents with their digests."""
    files = list(entries)
    for name, data in sorted(documents.items()):
        files.append(FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data)))
    manifest = PublishedManifest(format_version=1, files=files)
    return (manifest.model_dump_json(indent=2) + "\n").encode()
