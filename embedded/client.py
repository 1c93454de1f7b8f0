"""The demo's side of the REST API: submit a job, follow it, fetch what it made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

JOBS = "/v1/pruning-jobs"
ENDED = frozenset({"succeeded", "failed", "cancelled"})
# How long one request waits for a change.
_WAIT_SECONDS = 10
_CHUNK_BYTES = 1 << 20


class Refused(RuntimeError):
    """The API did not take a request; the message is its problem document."""


class Client:
    """A thin client.

    Args:
        http: Knows the base URL and the API key.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submit(self, spec: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """Submit a job; the job.

        Raises:
            Refused: the job is not valid.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _json(self._http.post(JOBS, json=spec, headers=headers))

    def get(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return _json(self._http.get(f"{JOBS}/{job_id}"))

    def ask(self, job_id: str, verb: str) -> dict[str, Any]:
        """`cancel`, `pause` or `resume`; the job afterwards."""
        return _json(self._http.post(f"{JOBS}/{job_id}/{verb}"))

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job each time that it changes, until it has ended."""
        etag = ""
        while True:
            response = self._http.get(
                f"{JOBS}/{job_id}",
                headers={"Prefer": f"wait={_WAIT_SECONDS}", "If-None-Match": etag or '""'},
            )
            if response.status_code == httpx.codes.NOT_MODIFIED:
                continue
            job = _json(response)
            etag = response.headers["ETag"]
            yield job
            if job["state"] in ENDED:
                return

    def wait(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""
        *_, last = self.follow(job_id)
        return last

    def report(self, job_id: str) -> dict[str, Any]:
        """The report as data."""
        return _json(self._http.get(f"{JOBS}/{job_id}/report"))

    def download(self, job_id: str, directory: Path) -> list[Path]:
        """Fetch the report and every file of the checkpoint, and check their digests.

        Raises:
            Refused: a file is not what the manifest says.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for kind in ("json", "html"):
            page = self._http.get(f"{JOBS}/{job_id}/report", params={"format": kind})
            (directory / f"report.{kind}").write_bytes(_checked(page).content)
        listing = _json(self._http.get(f"{JOBS}/{job_id}/artifacts", params={"presign": "true"}))
        return [_fetch(entry, directory) for entry in listing["data"]]


def _fetch(entry: dict[str, Any], directory: Path) -> Path:
    """Download by the lent URL, which needs no API key."""
    path = directory / Path(entry["name"]).name
    digest = hashlib.sha256()
    with httpx.stream("GET", entry["url"]) as response, path.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != entry["sha256"]:
        raise Refused(f"{entry['name']} is not the file that the job wrote.")
    return path


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise Refused(f"{response.status_code}: {response.text}")
    return response


def _json(response: httpx.Response) -> dict[str, Any]:
    content: dict[str, Any] = _checked(response).json()
    return content
