"""How the clients talk to the service, without sockets: requests, retries and pauses.

A *flow* is a generator. It yields the steps that it needs done, is sent the answer of each (or the
exception that it ended with), and returns the result. The blocking and the async client only differ
in how they do a step, so all else is written once, as flows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeGuard, TypeVar

import httpx

from strucprune_core.client.errors import Unreachable, from_problem
from strucprune_core.client.models import Problem

# Beyond what the service itself takes: connections, queues, proxies.
READ_SECONDS = 30.0
CONNECT_SECONDS = 10.0
FIRST_DELAY_SECONDS = 0.25
_MAX_DELAY_SECONDS = 8.0
# A server that asks for a longer wait than this is taken to be mistaken.
_MAX_RETRY_AFTER_SECONDS = 120.0
_RETRYABLE = frozenset({429, 500, 502, 503, 504})

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        retryable: Whether it may be sent again when its answer got lost.
        wait_seconds: How long the service may hold the answer.
        gone_is_done: Whether 404 to a repeated request means that the first one did the work.
    """

    method: str
    path: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    retryable: bool = True
    wait_seconds: float = 0.0
    gone_is_done: bool = False

    def options(self) -> dict[str, Any]:
        """Arguments of an HTTP client's request, apart from method and path."""
        timeout = httpx.Timeout(READ_SECONDS + self.wait_seconds, connect=CONNECT_SECONDS)
        return {
            "params": self.params,
            "headers": self.headers,
            "json": self.body,
            "timeout": timeout,
        }


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Something slow on this machine's disk."""

    do: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Receive:
    """One request to the object store, whose body is handed on as it comes.

    Attributes:
        begin: Called with status and headers; whether the body is wanted.
        write: Called with each piece of the body.
    """

    url: str
    headers: Mapping[str, str]
    begin: Callable[[int, Mapping[str, str]], bool]
    write: Callable[[bytes], None]


Step = Call | Sleep | Work | Receive
Answer = httpx.Response | httpx.TransportError | None
Flow = Generator[Step, Answer, _T]


@dataclass(slots=True)
class Pages(Generic[_T]):
    """A list that is read a page at a time.

    Attributes:
        read: The items of the page that begins at a mark, and the next mark, None after the last.
        mark: Where the next page begins.
    """

    read: Callable[[str], Flow[tuple[list[_T], str | None]]]
    mark: str | None

    def next(self) -> Flow[list[_T]]:
        """The items of the next page; none after the last."""
        if self.mark is None:
            return []
        items, self.mark = yield from self.read(self.mark)
        return items


@dataclass(frozen=True, slots=True)
class Retries:
    """How long to go on trying: `seconds` since a request was first sent."""

    seconds: float

    def send(self, call: Call) -> Flow[httpx.Response]:
        """The response of a request that succeeded, or was answered 304.

        Raises:
            Unreachable: no answer.
            ApiProblem: the service refused it.
        """
        began, attempt = time.monotonic(), 0
        while True:
            answer = yield call
            if isinstance(answer, httpx.Response) and not answer.is_error:
                return answer
            if call.gone_is_done and attempt and _is_gone(answer):
                return answer
            delay = backoff_seconds(attempt, answer)
            out_of_time = time.monotonic() + delay > began + self.seconds
            if not call.retryable or not _may_help(answer) or out_of_time:
                raise failure_of(answer)
            yield Sleep(delay)
            attempt += 1


def backoff_seconds(attempt: int, answer: Answer) -> float:
    """The wait before trying again: what the server asks for, else doubling, with jitter."""
    if isinstance(answer, httpx.Response):
        asked = answer.headers.get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), _MAX_RETRY_AFTER_SECONDS)
    longest = min(FIRST_DELAY_SECONDS * 2.0**attempt, _MAX_DELAY_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _may_help(answer: Answer) -> bool:
    return not isinstance(answer, httpx.Response) or answer.status_code in _RETRYABLE


def _is_gone(answer: Answer) -> TypeGuard[httpx.Response]:
    return isinstance(answer, httpx.Response) and answer.status_code == httpx.codes.NOT_FOUND


def failure_of(answer: Answer) -> Exception:
    """The error of a request that did not succeed."""
    if isinstance(answer, httpx.Response):
        return from_problem(problem_of(answer))
    # The class only: a message may quote the URL, and a URL may hold a signature.
    return Unreachable(f"The service does not answer ({type(answer).__name__})")


def problem_of(response: httpx.Response) -> Problem:
    """The problem that a service, or a proxy before it, answered with."""
    try:
        return Problem.model_validate({**response.json(), "status": response.status_code})
    except (ValueError, TypeError):  # Not a problem document.
        return Problem(
            status=response.status_code,
            title=response.reason_phrase,
            detail=f"The service answered {response.status_code} {response.reason_phrase}.",
        )
