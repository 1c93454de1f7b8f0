"""The record of a finished unit: what it left, and what it took. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from strucprune_core.method.linalg.transfers import NOTHING, Transferred


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A unit's file: its key in the workspace, size and SHA-256 (hex)."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of a finished unit.

    Attributes:
        unit: Name of the unit.
        files: Its files by name.
        values: Small results, JSON.
        seconds: Time it took.
        host_peak_bytes: Peak of the process's anonymous memory while it ran.
        device_peak_bytes: Peak of device allocations, None where the device is not measured.
        transferred: Bytes that crossed between host and device, or were read of the model.
    """

    unit: str
    files: dict[str, StoredFile]
    values: dict[str, Any]
    seconds: float
    host_peak_bytes: int
    device_peak_bytes: int | None
    transferred: Transferred = NOTHING

    def says_the_same_as(self, other: Manifest) -> bool:
        """Whether both are of the same bytes and values, whoever made them."""

        def made(manifest: Manifest) -> object:
            digests = {name: file.sha256 for name, file in manifest.files.items()}
            return digests, json.dumps(manifest.values, sort_keys=True)

        return made(self) == made(other)

    def body(self) -> dict[str, Any]:
        """What is stored as JSON."""
        return {
            "unit": self.unit,
            "files": {
                name: {"key": f.key, "bytes": f.bytes, "sha256": f.sha256}
                for name, f in sorted(self.files.items())
            },
            "values": self.values,
            "seconds": self.seconds,
            "host_peak_bytes": self.host_peak_bytes,
            "device_peak_bytes": self.device_peak_bytes,
            "transferred": self.transferred._asdict(),
        }

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> Manifest:
        """What `body` gave."""
        files = {name: StoredFile(**entry) for name, entry in body["files"].items()}
        transferred = Transferred(**body.get("transferred", {}))
        return cls(**{**body, "files": files, "transferred": transferred})
