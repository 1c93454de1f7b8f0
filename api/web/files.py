"""The files of the web page, read once, each with its media type and ETag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from strucprune_core.storage.digests import sha256_of_bytes

_MEDIA_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class WebFile:
    """One file as it is sent.

    Attributes:
        etag: Quoted; changes with the content.
    """

    content: bytes
    media_type: str
    etag: str


def load_files() -> Mapping[str, WebFile]:
    """Every file of the page by its name."""
    found = {}
    for path in files("api.web").joinpath("static").iterdir():
        _, _, extension = path.name.rpartition(".")
        if extension not in _MEDIA_TYPES:
            continue
        content = path.read_bytes()
        etag = f'"{sha256_of_bytes(content)[:32]}"'
        found[path.name] = WebFile(content, _MEDIA_TYPES[extension], etag)
    return MappingProxyType(found)
