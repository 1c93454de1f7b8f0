"""The last step: copy an accepted checkpoint and its report to the output, manifest last.

The output stays empty until every check has passed. Publishing may die anywhere and be repeated by
another process: every file is the same bytes each time. `report.json` goes first and claims the
prefix; `strucprune.json`, the list of all files with their digests, goes last and says "complete".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from strucprune_core.digests import sha256_of_bytes
from strucprune_core.errors import OutputNotEmpty
from strucprune_core.report import MANIFEST, REPORT_JSON, FileEntry, PublishedManifest
from strucprune_core.storage.overlay import OverlayStore
from strucprune_core.storage.store import Store

CLAIM = REPORT_JSON


def publish(
    output: Store,
    checkpoint: OverlayStore,
    entries: list[FileEntry],
    reports: dict[str, Path],
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write all files to the output.

    Args:
        output: Where they go.
        checkpoint: The assembled checkpoint.
        entries: Its files with their digests.
        reports: The report's files by name; "report.json" is among them.
        tick: Called before each file with (done, total): a safe point to stop at, since the same
            job may publish again.

    Raises:
        OutputNotEmpty: another job has published here.
    """
    claim = reports[CLAIM].read_bytes()
    if not output.put_if_absent(CLAIM, claim) and not is_claimed_by(output, claim):
        raise OutputNotEmpty(
            f"another job published to {output.uri} first",
            field="output.uri_prefix",
            remedy="Submit the job again with a new output prefix.",
        )
    for number, entry in enumerate(entries):
        tick(number, len(entries))
        if entry.name in checkpoint.paths:
            output.upload(entry.name, checkpoint.paths[entry.name])
        else:
            output.put(entry.name, checkpoint.contents[entry.name])
    for name, path in reports.items():
        if name != CLAIM:
            output.put(name, path.read_bytes())
    output.put(MANIFEST, _manifest(entries, reports))


def is_claimed_by(output: Store, claim: bytes) -> bool:
    """Whether the output's report is this one: an earlier attempt of the same job put it there."""
    return output.stat(CLAIM) is not None and bytes(output.read(CLAIM)) == claim


def _manifest(entries: list[FileEntry], reports: dict[str, Path]) -> bytes:
    files = list(entries)
    for name, path in sorted(reports.items()):
        data = path.read_bytes()
        files.append(FileEntry(name=name, bytes=len(data), sha256=sha256_of_bytes(data)))
    manifest = PublishedManifest(format_version=1, files=files)
    return (manifest.model_dump_json(indent=2) + "\n").encode()
