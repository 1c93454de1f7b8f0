"""Downloads of a job's files, without sockets: broken ones are continued, digests compared.

NAME.part      an unfinished file; a later download continues it
NAME           a file whose digest was compared
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from strucprune_core.client import calls
from strucprune_core.client.errors import DownloadFailed
from strucprune_core.client.flow import (
    CONNECT_SECONDS,
    READ_SECONDS,
    Answer,
    Flow,
    Receive,
    Retries,
    Sleep,
    Work,
    backoff_seconds,
)
from strucprune_core.client.models import Artifact
from strucprune_core.errors import AccessDenied
from strucprune_core.storage.keys import check_key

CHUNK_BYTES = 1 << 20
TIMEOUT = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
_PART = ".part"

OnBytes = Callable[[str, int, int], None]
"""Called with the name of a file, its bytes that have arrived, and its bytes in all."""


def download(
    retries: Retries,
    job_id: str,
    directory: Path | str,
    *,
    size: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Flow[list[Path]]:
    """Fetch all files of a succeeded job, and compare their digests.

    Files that an earlier call fetched are not fetched again.

    Args:
        retries: The client's.
        job_id: Its id.
        directory: Where they go; made if missing.
        size: Of a job of several sizes, the folder of the only one to fetch: "0.3".
        on_bytes: Called with a file's name, its bytes here, and its bytes in all.

    Raises:
        DownloadFailed: a file cannot be fetched, or is not the one that the job wrote; or the job
            has published no such size.
    """
    paths = []
    for artifact in (yield from files_of(retries, job_id, size=size)):
        file = Transfer(artifact, Path(directory), retries.seconds, on_bytes)
        yield from _fetch(retries, job_id, file)
        paths.append(file.path)
    return paths


def files_of(retries: Retries, job_id: str, *, size: str | None = None) -> Flow[list[Artifact]]:
    """The files that `download` fetches; arguments and errors are the same."""
    artifacts = yield from calls.artifacts(retries, job_id)
    if size is None:
        return artifacts
    chosen = [each for each in artifacts if each.name.startswith(f"{size}/")]
    if chosen:
        return chosen
    summary = (yield from calls.get(retries, job_id)).summary or {}
    sizes = [each["folder"] for each in summary.get("sizes", []) if each["folder"]]
    raise DownloadFailed(
        f"The job has published no size '{size}'",
        remedy=f"Choose one of {', '.join(sizes)}." if sizes else "Leave the size out.",
    )


def _fetch(retries: Retries, job_id: str, file: Transfer) -> Flow[None]:
    yield Work(file.prepare)
    while not file.done:
        if file.url_is_old:  # Asked for when it is needed: URLs last for minutes.
            file.renew((yield from calls.presigned(retries, job_id, file.artifact.name)))
        answer = None if file.complete else (yield file.request())
        if file.complete:
            file.finish()
        else:
            yield Sleep(file.pause_seconds(answer))


class Transfer:
    """The download of one file.

    Args:
        artifact: The file.
        directory: Stands for the output prefix, below which the file's name is a path.
        retry_seconds: How long to go on trying without receiving a byte.
        on_bytes: Called as bytes arrive.

    Attributes:
        done: Whether the file is there and its digest was right.
        url_is_old: Whether a new URL is needed.
    """

    def __init__(
        self, artifact: Artifact, directory: Path, retry_seconds: float, on_bytes: OnBytes | None
    ) -> None:
        self.artifact = artifact
        self.path = _inside(directory, artifact.name)
        self.done, self.url_is_old = False, artifact.url is None
        self._part = self.path.with_name(self.path.name + _PART)
        self._retry_seconds = retry_seconds
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self._here_bytes = 0
        self._whole = True  # Whether every byte came with this transfer.
        self._moved_at = time.monotonic()
        self._failures = 0

    def prepare(self) -> None:
        """Look for the file, or a part of it, on disk. Reads whole files."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and self.path.stat().st_size == self.artifact.bytes:
            with self.path.open("rb") as file:
                self.done = hashlib.file_digest(file, "sha256").hexdigest() == self.artifact.sha256
        if self.done:
            self._tell(self.artifact.bytes)
            return
        if self._part.is_file() and self._part.stat().st_size <= self.artifact.bytes:
            self._take_part()
        else:
            self._restart()

    def _take_part(self) -> None:
        with self._part.open("rb") as file:
            self._hash = hashlib.sha256()
            while block := file.read(CHUNK_BYTES):
                self._hash.update(block)
        self._here_bytes, self._whole = self._part.stat().st_size, False
        self._tell(self._here_bytes)

    def _restart(self) -> None:
        self._part.write_bytes(b"")
        self._hash, self._here_bytes, self._whole = hashlib.sha256(), 0, True

    @property
    def complete(self) -> bool:
        """Whether all bytes are here, though not yet compared."""
        return self._here_bytes >= self.artifact.bytes

    def request(self) -> Receive:
        """The request for the bytes that are missing.

        Raises:
            DownloadFailed: the store gives out no URLs.
        """
        if self.artifact.url is None:
            raise DownloadFailed(
                f"{self.artifact.name} cannot be downloaded: its store gives out no URLs",
                remedy=f"Copy it from {self.artifact.uri} yourself.",
            )
        headers = {"Accept-Encoding": "identity"}
        if self._here_bytes:
            headers["Range"] = f"bytes={self._here_bytes}-"
        return Receive(self.artifact.url, headers, self.begin, self.write)

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the body holds the bytes that were asked for; if not, it is asked for again.

        Raises:
            DownloadFailed: asking again would not help.
        """
        if status == httpx.codes.PARTIAL_CONTENT:
            if headers.get("content-range", "").startswith(f"bytes {self._here_bytes}-"):
                return True
            raise DownloadFailed(
                f"The store sent other bytes of {self.artifact.name} than asked",
                remedy=f"Download again, or copy it from {self.artifact.uri} yourself.",
            )
        if status == httpx.codes.OK:
            self._restart()  # The store ignores ranges and sends the whole file.
            return True
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._restart()
            return False
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            self.url_is_old = True
            return False
        if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
            return False
        raise DownloadFailed(
            f"{self.artifact.name} cannot be downloaded: the store answered {status}",
            remedy=f"Check that {self.artifact.uri} still exists.",
        )

    def write(self, data: bytes) -> None:
        """Append bytes to the part.

        Raises:
            DownloadFailed: there are more than the file has.
        """
        if self._here_bytes + len(data) > self.artifact.bytes:
            self._part.unlink(missing_ok=True)
            raise DownloadFailed(
                f"The store sent more than the {self.artifact.bytes} bytes of {self.artifact.name}",
                remedy="It was changed in the output prefix. Submit the job again with a new one.",
            )
        with self._part.open("ab") as file:
            file.write(data)
        self._hash.update(data)
        self._here_bytes += len(data)
        self._moved_at, self._failures = time.monotonic(), 0
        self._tell(self._here_bytes)

    def finish(self) -> None:
        """Compare the digest, and give the file its name.

        Raises:
            DownloadFailed: these are not the bytes that the job wrote.
        """
        if self._hash.hexdigest() == self.artifact.sha256:
            self._part.replace(self.path)
            self.done = True
        elif not self._whole:
            self._restart()  # The part on disk may be another file's.
        else:
            self._part.unlink(missing_ok=True)
            raise DownloadFailed(
                f"{self.artifact.name} is not the file that the job wrote",
                remedy="It was changed in the output prefix. Submit the job again with a new one.",
            )

    def pause_seconds(self, answer: Answer) -> float:
        """How long to wait after a request that brought nothing.

        Raises:
            DownloadFailed: no byte has arrived for too long.
        """
        if time.monotonic() - self._moved_at > self._retry_seconds:
            raise DownloadFailed(
                f"{self.artifact.name} cannot be downloaded: the store does not answer",
                remedy="Download again later; it continues where it broke off.",
            )
        self._failures += 1
        return backoff_seconds(self._failures - 1, answer)

    def renew(self, artifacts: list[Artifact]) -> None:
        """Take the new URL from a new list.

        Raises:
            DownloadFailed: the file is not in it, or has another digest.
        """
        for each in artifacts:
            if (each.name, each.sha256) == (self.artifact.name, self.artifact.sha256):
                self.artifact, self.url_is_old = each, False
                return
        raise DownloadFailed(
            f"{self.artifact.name} is not a file of the job any more",
            remedy="The job ran again meanwhile. Download its files again.",
        )

    def _tell(self, here_bytes: int) -> None:
        if self._on_bytes is not None:
            self._on_bytes(self.artifact.name, here_bytes, self.artifact.bytes)


def _inside(directory: Path, name: str) -> Path:
    """Where a file of this name goes. The service's names are checked, not trusted."""
    try:
        check_key(name)
    except AccessDenied as error:
        raise DownloadFailed(
            f"The service names the file {name!r}, which is unsafe",
            remedy="Check the URL: this is not a service to trust.",
        ) from error
    root = directory.resolve()
    path = root / name
    if not path.resolve().is_relative_to(root):
        raise DownloadFailed(
            f"{name!r} is a link that leads out of {directory}",
            remedy="Remove the link, or choose another directory.",
        )
    return path


def connection(verify: Any) -> dict[str, Any]:
    """Arguments of the HTTP client that talks to the object store: it never sees the API key."""
    return {"timeout": TIMEOUT, "verify": verify, "follow_redirects": False}
