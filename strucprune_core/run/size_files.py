"""What a job publishes of several sizes: a folder for each that is good enough, and a card.

<output>/README.md, report.json, report.html    all sizes
<output>/0.3/                                   what a job of this size alone publishes
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from strucprune_core.checkpoint.terms import MODEL_CARD
from strucprune_core.report.document import MANIFEST, FileEntry
from strucprune_core.run.artifacts import File, Report
from strucprune_core.run.context import Job
from strucprune_core.run.publish import manifest_json
from strucprune_core.run.result_files import file_entries, result
from strucprune_core.run.sizes import Sizes
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.overlay import OverlayStore

V = TypeVar("V")


def results(job: Sizes, card: bytes) -> OverlayStore:
    """Everything that goes to the output but the job's report.

    Args:
        job: A job whose sizes are all finished.
        card: README.md of the only size, or of all together.
    """
    if not job.several:
        return result(job.first, card)
    contents: dict[str, bytes] = {MODEL_CARD: card}
    paths: dict[str, Path] = {}
    for size, each in job.accepted.items():
        files, _ = _output(each)
        contents |= _within(size, files.contents)
        paths |= _within(size, files.paths)
    return OverlayStore(contents, paths)


def entries(job: Sizes, files: OverlayStore) -> list[FileEntry]:
    """The files of the results with their digests."""
    if not job.several:
        return file_entries(job.first, files)
    return entries_of_sizes(job, files.contents[MODEL_CARD])


def entries_of_sizes(job: Sizes, card: bytes) -> list[FileEntry]:
    """The same for several sizes."""
    found = [_entry(MODEL_CARD, card)]
    for size, each in job.accepted.items():
        _, of_size = _output(each)
        found += [
            entry.model_copy(update={"name": f"{size}/{entry.name}"})
            for entry in sorted(of_size, key=lambda entry: entry.name)
        ]
    return found


def _output(job: Job) -> tuple[OverlayStore, list[FileEntry]]:
    """What a job of one size publishes, to the last file, and all of it with digests."""
    files, documents = result(job, _document(job, Report.card)), _documents(job)
    listed = file_entries(job, files)
    documents[MANIFEST] = manifest_json(listed, documents)
    whole = OverlayStore({**files.contents, **documents}, files.paths)
    return whole, [*listed, *(_entry(name, data) for name, data in documents.items())]


def _documents(job: Job) -> dict[str, bytes]:
    return {name: _document(job, name) for name in (Report.json, Report.html)}


def _document(job: Job, name: str) -> bytes:
    return job.units.path(File(Report().unit, name)).read_bytes()


def _within(folder: str, files: Mapping[str, V]) -> dict[str, V]:
    return {f"{folder}/{name}": file for name, file in files.items()}


def _entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data))
