"""Requests to a Hugging Face hub, through `huggingface_hub`: its session, token and endpoint.

    HF_TOKEN, HF_TOKEN_PATH, `hf auth login`   the token
    HF_ENDPOINT                                the hub; huggingface.co by default
    HF_HUB_OFFLINE                             refuses every request

This file adds what a long job needs: time limits, repeated requests, bounded answers, and errors
with a remedy. No torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from strucprune_core import __version__
from strucprune_core.errors import (
    AccessDenied,
    InvalidSpec,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)

try:
    import httpx2 as httpx
except ModuleNotFoundError:  # huggingface_hub before 2
    import httpx  # type: ignore[no-redef]

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 60.0
# An answer has the read timeout in all, and more time with each byte that arrives: 128 kbit/s.
LEAST_BYTES_PER_SECOND = 16 * 1024
# With waits of 1, 2 and 4 s: a short failure is bridged, an outage reported within seconds.
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 1.0
# A hub counts requests in windows of five minutes.
LONGEST_WAIT_SECONDS = 310.0
# Of a listing's page, or the facts of a repository with very many files.
MAX_ANSWER_BYTES = 32 * 2**20
# More than any model has; a data set may have millions.
MAX_ENTRIES = 20_000
# An answer without the range asked for is read from its start, if that is not far.
MAX_SKIPPED_BYTES = 16 * 2**20

_REPEATED = frozenset({408, 500, 502, 503, 504})
_NOT_TRUSTED = ("CERTIFICATE_VERIFY_FAILED", "doesn't match")
_NOT_A_HUB = "Check HF_ENDPOINT: the answer is not that of a Hugging Face hub."
_MAY_NOT_READ = (
    "Set HF_TOKEN to a valid token that may read it; for a service, its operator sets the token."
)

# Raised before anything is sent. The token may hold letters that no header can.
_SETTINGS = (OfflineModeIsEnabled, httpx.InvalidURL, UnicodeEncodeError)

T = TypeVar("T")


class HubClient:
    """Requests about one repository.

    Args:
        repository: `org/name`, or `datasets/org/name`.
        longest_wait_seconds: A hub that limits requests says how long to wait. If that is longer,
            the request fails.
    """

    def __init__(self, repository: str, longest_wait_seconds: float = LONGEST_WAIT_SECONDS) -> None:
        self.repository = repository
        self._longest_wait = longest_wait_seconds

    @property
    def _api(self) -> str:
        models = "" if self.repository.startswith("datasets/") else "models/"
        return f"{constants.ENDPOINT}/api/{models}{self.repository}"

    def commit(self, revision: str) -> str:
        """The commit that a branch or tag is at now ("" is the main branch)."""
        name = f"hf://{self.repository}@{revision}" if revision else f"hf://{self.repository}"
        revision = revision or constants.DEFAULT_REVISION
        facts, _ = self._json(
            f"{self._api}/revision/{quote(revision, safe='')}", {"expand": "sha"}, name
        )
        commit = facts.get("sha") if isinstance(facts, dict) else None
        if not isinstance(commit, str):
            raise _not_a_hub(name)
        return commit

    def pages(self, commit: str, folder: str) -> Iterator[list[Any]]:
        """The entries below a folder at a commit, in pages; none if there is no such folder."""
        name = f"hf://{self.repository}@{commit}/{folder}"
        url = f"{self._api}/tree/{commit}/{quote(folder)}".rstrip("/")
        query, left = {"recursive": "true"}, MAX_ENTRIES
        while left > 0:
            try:
                page, cursor = self._json(url, query, name)
            except _NoEntry:
                return
            if not isinstance(page, list):
                raise _not_a_hub(name)
            yield page
            if cursor is None:
                return
            query["cursor"], left = cursor, left - max(1, len(page))
        raise StorageError(
            f"{name} holds more than {MAX_ENTRIES:,} files and folders",
            remedy="Name the folder of one model, or one text.",
        )

    def file_facts(self, commit: str, path: str) -> tuple[int, str] | None:
        """Bytes and digest of a file; None if there is no such file."""
        name = f"hf://{self.repository}@{commit}/{path}"
        try:
            facts = self._repeated(
                name,
                lambda: get_hf_file_metadata(self._url(commit, path), timeout=READ_TIMEOUT_SECONDS),
            )
        except _NoEntry:
            return None
        if facts.size is None or facts.etag is None:
            raise _not_a_hub(name)
        return facts.size, facts.etag

    def read(self, commit: str, path: str, start: int, length: int) -> bytearray:
        """Bytes of a file, at least one; it must hold so many."""
        name = f"hf://{self.repository}@{commit}/{path}"
        url = self._url(commit, path)
        return self._repeated(name, lambda: _range(url, start, length, name))

    def _url(self, commit: str, path: str) -> str:
        return f"{constants.ENDPOINT}/{self.repository}/resolve/{commit}/{quote(path)}"

    def _json(self, url: str, query: Mapping[str, str], name: str) -> tuple[Any, str | None]:
        """A JSON answer, and the cursor of the next page if there is one."""
        data, link = self._repeated(name, lambda: _whole(url, query, name))
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _not_a_hub(name) from error
        # Only the cursor is used: the rest of the link may name another host.
        cursors = parse_qs(urlsplit(link).query).get("cursor", [None])
        return answer, cursors[0]

    def _repeated(self, name: str, request: Callable[[], T]) -> T:
        """What the request returns. Failures that may pass are repeated."""
        for attempt in range(ATTEMPTS - 1):
            try:
                return request()
            except HfHubHTTPError as error:
                wait = self._wait(error, attempt)
                if wait is None:
                    raise _from_answer(error, name) from error
            except httpx.RequestError as error:
                if not _may_pass(error):
                    raise _from_client(error, name) from error
                wait = FIRST_WAIT_SECONDS * 2**attempt
            except _SETTINGS as error:
                raise _from_settings(error, name) from error
            time.sleep(wait)
        with translated(name):
            return request()

    def _wait(self, error: HfHubHTTPError, attempt: int) -> float | None:
        """How long to wait before the request is repeated; None if that is of no use."""
        status = int(error.response.status_code)
        usual: float = FIRST_WAIT_SECONDS * 2**attempt
        if status in _REPEATED:
            return usual
        told = _told_wait(error)
        if status != HTTPStatus.TOO_MANY_REQUESTS or (told or 0) > self._longest_wait:
            return None
        return usual if told is None else told + 1


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the library's exceptions into the typed errors of the store protocol."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _from_answer(error, name) from error
    except httpx.RequestError as error:
        raise _from_client(error, name) from error
    except _SETTINGS as error:
        raise _from_settings(error, name) from error


class _NoEntry(ObjectNotFound):
    """The repository has no such file or folder at that commit."""


def _timeout() -> httpx.Timeout:
    return httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)


def _headers(**more: str) -> dict[str, str]:
    headers: dict[str, str] = build_hf_headers(
        library_name="strucprune", library_version=__version__
    )
    # Else a range or a length could be one of compressed bytes.
    return {**headers, "Accept-Encoding": "identity", **more}


def _whole(url: str, query: Mapping[str, str], name: str) -> tuple[bytes, str]:
    """A whole answer of a bounded size, and the URL of the next page or ""."""
    with get_session().stream(
        "GET", url, params=dict(query), headers=_headers(), timeout=_timeout()
    ) as response:
        hf_raise_for_status(response)
        data = bytearray()
        for piece in _pieces(response):
            data += piece
            if len(data) > MAX_ANSWER_BYTES:
                raise StorageError(
                    f"{name}: the hub's answer has more than {MAX_ANSWER_BYTES:,} bytes",
                    remedy=_NOT_A_HUB,
                )
        return bytes(data), response.links.get("next", {}).get("url", "")


def _range(url: str, start: int, length: int, name: str) -> bytearray:
    """A range of a file. The answer may come from another host, which gets no token."""
    headers = _headers(Range=f"bytes={start}-{start + length - 1}")
    with get_session().stream("GET", url, headers=headers, timeout=_timeout()) as response:
        hf_raise_for_status(response)
        skipped = _before(response, start, length, name)
        data, position = bytearray(length), -skipped
        for piece in _pieces(response):
            begin, end = max(0, -position), min(len(piece), length - position)
            if begin < end:
                data[position + begin : position + end] = piece[begin:end]
            position += len(piece)
            if position >= length:
                return data
        raise StorageError(
            f"{name} ends {length - position:,} bytes before byte {start + length:,}",
            remedy="It is not the file that the hub describes: try again, or use another hub.",
        )


def _before(response: httpx.Response, start: int, length: int, name: str) -> int:
    """How many bytes of the answer come before the range that was asked for."""
    if response.status_code == HTTPStatus.PARTIAL_CONTENT:
        range_, _, _ = response.headers.get("Content-Range", "").partition("/")
        if range_ != f"bytes {start}-{start + length - 1}":
            raise StorageError(
                f"{name}: the hub answered another byte range than was asked for",
                remedy=_NOT_A_HUB,
            )
        return 0
    if start > MAX_SKIPPED_BYTES:
        raise StorageError(f"{name}: the hub ignored the byte range asked for", remedy=_NOT_A_HUB)
    return start


def _pieces(response: httpx.Response) -> Iterator[bytes]:
    """The body as it arrives.

    Raises:
        httpx.ReadTimeout: it arrives too slowly.
    """
    left, began = READ_TIMEOUT_SECONDS, time.monotonic()
    for piece in response.iter_raw():
        now = time.monotonic()
        left -= now - began - len(piece) / LEAST_BYTES_PER_SECOND
        if left < 0:
            raise httpx.ReadTimeout("the answer came too slowly")
        yield piece
        began = time.monotonic()


def _told_wait(error: HfHubHTTPError) -> float | None:
    """Seconds after which the hub would answer again, if it said so."""
    headers = error.response.headers
    told = headers.get("Retry-After", "")
    if not told.isdecimal():
        # "api";r=0;t=55: no request is left for 55 seconds.
        parts = dict(
            part.strip().partition("=")[::2] for part in headers.get("RateLimit", "").split(";")
        )
        told = parts.get("t", "") if parts.get("r") == "0" else ""
    return float(told) if told.isdecimal() else None


def _may_pass(error: Exception) -> bool:
    untrusted = any(words in str(error) for words in _NOT_TRUSTED)
    return not untrusted and not isinstance(
        error, (httpx.UnsupportedProtocol, httpx.TooManyRedirects)
    )


def _from_settings(error: Exception, name: str) -> StorageError | InvalidSpec:
    if isinstance(error, OfflineModeIsEnabled):
        return StorageError(
            f"{name}: HF_HUB_OFFLINE is set, so no hub is asked",
            remedy="Unset it; or name the snapshot's directory in the local cache "
            "(hub/models--ORG--NAME/snapshots/COMMIT).",
        )
    if isinstance(error, UnicodeEncodeError):
        # The library's message quotes the token.
        return InvalidSpec(
            f"{name}: HF_TOKEN holds characters that no token has",
            remedy="Copy the token again: hf_ and letters and digits.",
        )
    return InvalidSpec(
        f"{name}: the hub's URL is malformed ({error})",
        remedy="Correct HF_ENDPOINT: https:// or http://, name and port.",
    )


def _from_client(error: Exception, name: str) -> StorageError | InvalidSpec:
    """The typed error for a request that got no whole answer."""
    if isinstance(error, httpx.UnsupportedProtocol):
        return _from_settings(error, name)
    if isinstance(error, httpx.TooManyRedirects):
        return StorageError(f"{name}: the hub redirects every request", remedy=_NOT_A_HUB)
    if not _may_pass(error):
        return StorageError(
            f"{name}: the hub's certificate is not trusted: {error}",
            remedy="Name the file with the certificate of its authority in SSL_CERT_FILE.",
        )
    return StorageUnavailable(
        f"{name}: the hub does not answer ({error or type(error).__name__})",
        remedy="Check the network, HF_ENDPOINT and HTTPS_PROXY, then try again.",
    )


def _from_answer(error: HfHubHTTPError, name: str) -> StorageError:
    """The typed error for an error that the hub answered."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return AccessDenied(
            f"{name}: the repository is gated, and this token has no access to it",
            remedy=f"Accept its conditions on its page at {constants.ENDPOINT}, and set HF_TOKEN "
            "to a token of that account; for a service, its operator does both.",
        )
    if isinstance(error, DisabledRepoError):
        return AccessDenied(f"{name}: the hub has disabled the repository", remedy="Use another.")
    if isinstance(error, RevisionNotFoundError):
        return ObjectNotFound(
            f"{name}: the repository has no such revision",
            remedy="Check the branch, tag or commit.",
        )
    if isinstance(error, EntryNotFoundError):
        return _NoEntry(
            f"{name} does not exist", remedy="Check the path, and the revision that it is in."
        )
    if isinstance(error, RepositoryNotFoundError):
        return ObjectNotFound(
            f"{name}: there is no such repository, or it is private and this token may not read it",
            remedy=f"Check the name. {_MAY_NOT_READ}",
        )
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AccessDenied(f"{name}: the hub refused access ({status})", remedy=_MAY_NOT_READ)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        told = _told_wait(error)
        wait = "" if told is None else f" for {told:.0f} s"
        return StorageUnavailable(
            f"{name}: the hub accepts no more requests{wait}",
            remedy="Try again then; with a token (HF_TOKEN) a hub accepts more.",
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _REPEATED:
        return StorageUnavailable(f"{name}: the hub cannot answer now ({status})")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return StorageError(f"{name}: the byte range lies beyond its end")
    if status == HTTPStatus.NOT_FOUND:
        return ObjectNotFound(f"{name} does not exist", remedy=_NOT_A_HUB)
    return StorageError(f"{name}: the hub answered {status}: {error.server_message or error}")


def _not_a_hub(name: str) -> StorageError:
    return StorageError(f"{name}: the answer is not that of a hub", remedy=_NOT_A_HUB)
