"""The client that blocks. Methods may be called from several threads."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Self, TypeVar

import httpx

from strucprune_core.client import calls, follow, transfer
from strucprune_core.client.flow import Answer, Call, Flow, Pages, Receive, Sleep, Step, Work
from strucprune_core.client.models import Event
from strucprune_core.client.operations import Operations

_T = TypeVar("_T")


class StrucPruneClient(Operations):
    """A connection to one service, under one API key. A context manager.

    Args:
        url: Of the service; None reads STRUCPRUNE_URL.
        api_key: None reads STRUCPRUNE_API_KEY.
        retry_seconds: For so long a request is repeated while the service does not answer, is
            overloaded or down.
        verify: False accepts any certificate; a context says which ones to accept.

    Every method raises `ApiProblem` and its kinds if the service refuses, and `Unreachable` if it
    does not answer (see `errors`).

    Raises:
        InvalidSpec: URL or key are not known.
    """

    def _open(self, service: dict[str, Any], store: dict[str, Any]) -> None:
        self._http, self._files = httpx.Client(**service), httpx.Client(**store)

    def events(self, job_id: str, *, after: str = "0") -> Generator[Event, None, None]:
        """What happens to a job, as it happens, until it ends; over broken connections too.

        Of a retried job, what happened in all its runs, until the last one ends.

        Args:
            job_id: Its id.
            after: Id of the last event already seen; "0" begins with the first.
        """
        follower, over = follow.Follower(job_id, after), False
        while not over:
            with closing(self._stream(follower)) as stream:
                for data in stream:
                    yield from follower.feed(data)
            missed, over = self._run(
                calls.catch_up(self._retries, job_id, follower.after, ended=follower.ended)
            )
            yield from follower.note(missed)

    def _stream(self, follower: follow.Follower) -> Generator[bytes, None, None]:
        """The bytes of one stream; none if it could not be opened."""
        headers = follower.begin()
        try:
            with self._http.stream(
                "GET", follower.path, headers=headers, timeout=follow.TIMEOUT
            ) as response:
                if response.is_success:
                    yield from response.iter_bytes()
        except httpx.TransportError:
            return  # Catching up raises what is wrong, if it stays so.

    def _run(self, flow: Flow[_T]) -> _T:
        """The result of a flow."""
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            answer = self._do(step)

    def _items(self, pages: Pages[_T]) -> Iterator[_T]:
        """The items of all pages."""
        while pages.mark is not None:
            yield from self._run(pages.next())

    def _do(self, step: Step) -> Answer:
        match step:
            case Sleep():
                time.sleep(step.seconds)
            case Work():
                step.do()
            case Call():
                return self._call(step)
            case Receive():
                return self._receive(step)
        return None

    def _call(self, call: Call) -> Answer:
        try:
            return self._http.request(call.method, call.path, **call.options())
        except httpx.TransportError as error:
            return error

    def _receive(self, wanted: Receive) -> Answer:
        try:
            with self._files.stream("GET", wanted.url, headers=wanted.headers) as response:
                if wanted.begin(response.status_code, response.headers):
                    for data in response.iter_raw(transfer.CHUNK_BYTES):
                        wanted.write(data)
                return response
        except httpx.TransportError as error:
            return error

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
