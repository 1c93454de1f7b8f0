"""The methods that both clients share: each runs a flow of `calls`.

`client.get(job_id)` runs `calls.get(retries, job_id)`. The blocking client returns its result, the
async one a coroutine. Where a list comes in pages, they return an iterator over all items.
"""

from __future__ import annotations

import inspect
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from strucprune_core.client import calls, find, transfer
from strucprune_core.client.connection import connection
from strucprune_core.client.flow import Flow, Pages, Retries

if TYPE_CHECKING:
    from strucprune_core.client.asynchronous import AsyncStrucPruneClient
    from strucprune_core.client.synchronous import StrucPruneClient

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Operation(Generic[_P, _T]):
    """A flow as a method: of a client that blocks, or of one to await."""

    def __init__(self, flow: Callable[Concatenate[Retries, _P], Flow[_T]]) -> None:
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: StrucPruneClient, owner: type) -> Callable[_P, _T]: ...
    @overload
    def __get__(
        self, client: AsyncStrucPruneClient, owner: type
    ) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """The method of a client."""
        return self if client is None else _bound(self._flow, client, client._run)


class Listing(Generic[_P, _T]):
    """A list that comes in pages, as a method that iterates over its items."""

    def __init__(self, pages: Callable[Concatenate[Retries, _P], Pages[_T]]) -> None:
        self._pages = pages
        self.__doc__ = pages.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: StrucPruneClient, owner: type) -> Callable[_P, Iterator[_T]]: ...
    @overload
    def __get__(
        self, client: AsyncStrucPruneClient, owner: type
    ) -> Callable[_P, AsyncIterator[_T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """The method of a client."""
        return self if client is None else _bound(self._pages, client, client._items)


def _bound(make: Callable[..., Any], client: Operations, use: Callable[[Any], Any]) -> Any:
    @wraps(make)
    def method(*arguments: Any, **more: Any) -> Any:
        return use(make(client._retries, *arguments, **more))

    signature = inspect.signature(make)  # For `help`: callers do not give the first argument.
    given = [*signature.parameters.values()][1:]
    method.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
    return method


class Operations(ABC):
    """What both clients do; see `StrucPruneClient` for the arguments."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry_seconds: float = 60.0,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._retries = Retries(retry_seconds)
        self._open(connection(url, api_key, verify), transfer.connection(verify))

    @abstractmethod
    def _run(self, flow: Flow[_T]) -> Any:
        """The result of a flow, or a coroutine of it."""

    @abstractmethod
    def _items(self, pages: Pages[_T]) -> Any:
        """An iterator over the items of all pages."""

    @abstractmethod
    def _open(self, service: dict[str, Any], store: dict[str, Any]) -> None:
        """Make the two HTTP clients, given their arguments."""

    submit = Operation(calls.submit)
    extend = Operation(calls.extend)
    validate = Operation(calls.validate)
    get = Operation(calls.get)
    find = Operation(find.find)
    list = Listing(calls.jobs)
    wait = Operation(calls.wait)
    cancel = Operation(calls.cancel)
    pause = Operation(calls.pause)
    resume = Operation(calls.resume)
    retry = Operation(calls.retry)
    delete = Operation(calls.delete)
    logs = Listing(calls.logs)
    report = Operation(calls.report)
    report_html = Operation(calls.report_html)
    artifacts = Operation(calls.artifacts)
    models = Operation(calls.models)
    quota = Operation(calls.quota)
    workers = Operation(calls.workers)
    download = Operation(transfer.download)
    files_of = Operation(transfer.files_of)
