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
from strucprune_core.run.artifacts import Report
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
        files, documents = result(each, _document(each, Report.card)), _documents(each)
        manifest = manifest_json(file_entries(each, files), documents)
        contents |= _within(size, {**files.contents, **documents, MANIFEST: manifest})
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
        files, documents = result(each, _document(each, Report.card)), _documents(each)
        of_size = file_entries(each, files)
        manifest = manifest_json(of_size, documents)
        of_size += [_entry(name, data) for name, data in documents.items()]
        of_size.append(_entry(MANIFEST, manifest))
        found += [
            entry.model_copy(update={"name": f"{size}/{entry.name}"})
            for entry in sorted(of_size, key=lambda entry: entry.name)
        ]
    return found


def _documents(job: Job) -> dict[str, bytes]:
    return {name: _document(job, name) for name in (Report.json, Report.html)}


def _document(job: Job, name: str) -> bytes:
    files = {Report.json: Report().json, Report.html: Report().html, Report.card: Report().card}
    return job.units.path(files[name]).read_bytes()


def _within(folder: str, files: Mapping[str, V]) -> dict[str, V]:
    return {f"{folder}/{name}": file for name, file in files.items()}


def _entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data))
