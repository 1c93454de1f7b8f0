"""The client to await; the same methods as the one that blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Self, TypeVar

import httpx

from strucprune_core.client import calls, follow, transfer
from strucprune_core.client.flow import Answer, Call, Flow, Pages, Receive, Sleep, Step, Work
from strucprune_core.client.models import Event
from strucprune_core.client.operations import Operations

_T = TypeVar("_T")


class AsyncStrucPruneClient(Operations):
    """A connection as `StrucPruneClient`, whose methods are awaited. An async context manager."""

    def _open(self, service: dict[str, Any], store: dict[str, Any]) -> None:
        self._http, self._files = httpx.AsyncClient(**service), httpx.AsyncClient(**store)

    async def events(self, job_id: str, *, after: str = "0") -> AsyncGenerator[Event, None]:
        """What happens to a job, as `StrucPruneClient.events` gives it."""
        follower, over = follow.Follower(job_id, after), False
        while not over:
            async with aclosing(self._stream(follower)) as stream:
                async for data in stream:
                    for event in follower.feed(data):
                        yield event
            missed, over = await self._run(
                calls.catch_up(self._retries, job_id, follower.after, ended=follower.ended)
            )
            for event in follower.note(missed):
                yield event

    async def _stream(self, follower: follow.Follower) -> AsyncGenerator[bytes, None]:
        """The bytes of one stream; none if it could not be opened."""
        headers = follower.begin()
        try:
            async with self._http.stream(
                "GET", follower.path, headers=headers, timeout=follow.TIMEOUT
            ) as response:
                if response.is_success:
                    async for data in response.aiter_bytes():
                        yield data
        except httpx.TransportError:
            return  # Catching up raises what is wrong, if it stays so.

    async def _run(self, flow: Flow[_T]) -> _T:
        """The result of a flow."""
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            answer = await self._do(step)

    async def _items(self, pages: Pages[_T]) -> AsyncIterator[_T]:
        """The items of all pages."""
        while pages.mark is not None:
            for item in await self._run(pages.next()):
                yield item

    async def _do(self, step: Step) -> Answer:
        match step:
            case Sleep():
                await asyncio.sleep(step.seconds)
            case Work():
                await asyncio.to_thread(step.do)
            case Call():
                return await self._call(step)
            case Receive():
                return await self._receive(step)
        return None

    async def _call(self, call: Call) -> Answer:
        try:
            return await self._http.request(call.method, call.path, **call.options())
        except httpx.TransportError as error:
            return error

    async def _receive(self, wanted: Receive) -> Answer:
        try:
            async with self._files.stream("GET", wanted.url, headers=wanted.headers) as response:
                if wanted.begin(response.status_code, response.headers):
                    async for data in response.aiter_raw(transfer.CHUNK_BYTES):
                        await asyncio.to_thread(wanted.write, data)
                return response
        except httpx.TransportError as error:
            return error

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()
        await self._files.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
