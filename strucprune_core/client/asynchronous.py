"""The client to await; the same methods as the one that blocks, which documents them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from strucprune_core.client import calls, follow, transfer
from strucprune_core.client.calls import Answer, Call, Flow, Retries, Sleep, Spec
from strucprune_core.client.connection import connection
from strucprune_core.client.models import Artifact, Event, Job, LogLine, Validation
from strucprune_core.client.transfer import OnBytes, Transfer

_T = TypeVar("_T")
# Named here because the method `list` hides the built-in inside the class body.
Artifacts = list[Artifact]
Paths = list[Path]


class AsyncStrucPruneClient:
    """A connection to one service, under one API key. An async context manager.

    Args:
        url: Of the service; None reads STRUCPRUNE_URL.
        api_key: None reads STRUCPRUNE_API_KEY.
        retry_seconds: For so long a request is repeated while the service does not answer, is
            overloaded or down.
        verify: False trusts any certificate; a context trusts what it is told to.

    Every method raises `ApiProblem` and its kinds if the service refuses, and `Unreachable` if it
    does not answer (see `errors`).

    Raises:
        InvalidSpec: URL or key are not known.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        retry_seconds: float = 60.0,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._http = httpx.AsyncClient(**connection(url, api_key, verify))
        self._files = httpx.AsyncClient(**transfer.connection(verify))
        self._retries = Retries(retry_seconds)

    async def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> Job:
        """Submit a job, a `JobSpec` or a mapping like it.

        Args:
            spec: The job.
            idempotency_key: The same key and job give the same job, also from another process;
                None makes one up for this call.

        Raises:
            RequestInvalid: the job cannot work; `problem.errors` names the fields.
        """
        return await self._run(calls.submit(self._retries, spec, idempotency_key))

    async def validate(self, spec: Spec) -> Validation:
        """Say what is wrong with a job, or what it would cost, without submitting it."""
        return await self._run(calls.validate(self._retries, spec))

    async def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound: there is none, or it is another tenant's.
        """
        return await self._run(calls.get(self._retries, job_id))

    async def list(
        self,
        *,
        state: str | None = None,
        label: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = calls.MAX_PAGE_SIZE,
    ) -> AsyncIterator[Job]:
        """All jobs, newest first, a page at a time as they are asked for.

        Args:
            state: Only jobs in this state.
            label: Only jobs with this label, `name=value`.
            created_after: Only later ones; with a time zone.
            created_before: Only earlier ones.
            page_size: Jobs per request, at most 100.
        """
        cursor: str | None = None
        while True:
            page = await self._run(
                calls.page(
                    self._retries,
                    cursor,
                    state=state,
                    label=label,
                    created_after=created_after,
                    created_before=created_before,
                    page_size=page_size,
                )
            )
            for job in page.data:
                yield job
            cursor = page.next_cursor
            if cursor is None:
                return

    async def wait(
        self,
        job_id: str,
        *,
        timeout_seconds: float | None = None,
        on_change: Callable[[Job], None] | None = None,
    ) -> Job:
        """The job once it has succeeded, failed or been cancelled.

        Args:
            job_id: Its id.
            timeout_seconds: None waits for as long as it takes.
            on_change: Called with the job at once, and each time that it changes.

        Raises:
            WaitTimeout: it has not ended by then. It goes on.
        """
        return await self._run(calls.wait(self._retries, job_id, timeout_seconds, on_change))

    async def events(self, job_id: str, *, after: str = "0") -> AsyncGenerator[Event, None]:
        """What happens to a job, as it happens, until it ends; over broken connections too.

        Of a retried job, what happened in all its runs, until the last one ends.

        Args:
            job_id: Its id.
            after: Id of the last event already seen; "0" begins with the first.
        """
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
        """The bytes of one stream; none if there was none to be had."""
        headers = follower.begin()
        try:
            async with self._http.stream(
                "GET", follower.path, headers=headers, timeout=follow.TIMEOUT
            ) as response:
                if response.is_success:
                    async for data in response.aiter_bytes():
                        yield data
        except httpx.TransportError:
            return  # catching up says what is wrong, if it stays so

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it waits, at its next safe point if it runs.

        Raises:
            JobConflict: it has ended otherwise.
        """
        return await self._run(calls.control(self._retries, job_id, "cancel"))

    async def pause(self, job_id: str) -> Job:
        """Pause a job: at once if it waits, at its next safe point if it runs.

        Raises:
            JobConflict: it has ended.
        """
        return await self._run(calls.control(self._retries, job_id, "pause"))

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it goes on from its last finished layer.

        Raises:
            JobConflict: it has ended, or is being cancelled.
        """
        return await self._run(calls.control(self._retries, job_id, "resume"))

    async def retry(self, job_id: str) -> Job:
        """Run a failed or cancelled job again, from its last finished layer.

        Raises:
            JobConflict: it has not ended yet, or has succeeded.
        """
        return await self._run(calls.control(self._retries, job_id, "retry"))

    async def delete(self, job_id: str, *, outputs: bool = False) -> None:
        """Remove a job that is over.

        Args:
            job_id: Its id.
            outputs: Whether the files that it has published go too.

        Raises:
            JobConflict: it is not over; cancel it first.
            JobNotFound: there is none (any more).
        """
        await self._run(calls.delete(self._retries, job_id, outputs=outputs))

    async def logs(self, job_id: str, *, after: str = "0") -> AsyncIterator[LogLine]:
        """What a job's process has logged up to now, in all runs, oldest line first.

        Args:
            job_id: Its id.
            after: Id of the last line already seen; "0" begins with the oldest that is kept.
        """
        while True:
            page = await self._run(calls.log_page(self._retries, job_id, after))
            for line in page.data:
                yield line
            if not page.data:
                return
            after = page.next_after

    async def report(self, job_id: str) -> dict[str, Any]:
        """The report of a succeeded job, which `strucprune_core.Report` reads.

        Raises:
            JobConflict: it has not succeeded.
        """
        return await self._run(calls.report(self._retries, job_id))

    async def report_html(self, job_id: str) -> str:
        """The report as a page that needs nothing else."""
        return await self._run(calls.report_html(self._retries, job_id))

    async def artifacts(self, job_id: str, *, presign: bool = False) -> Artifacts:
        """The files of a succeeded job; with `presign`, with short-lived download URLs.

        Raises:
            JobConflict: it has not succeeded.
        """
        return await self._run(calls.artifacts(self._retries, job_id, presign=presign))

    async def download(
        self, job_id: str, directory: Path | str, *, on_bytes: OnBytes | None = None
    ) -> Paths:
        """Fetch all files of a succeeded job, and compare their digests.

        What an earlier call left there is not fetched again.

        Args:
            job_id: Its id.
            directory: Where they go; made if missing.
            on_bytes: Called with a file's name, its bytes here, and its bytes in all.

        Raises:
            DownloadFailed: a file cannot be had, or is not the one that the job wrote.
        """
        found = await self.artifacts(job_id)
        return [await self._fetch(job_id, file, Path(directory), on_bytes) for file in found]

    async def _fetch(
        self, job_id: str, artifact: Artifact, directory: Path, on_bytes: OnBytes | None
    ) -> Path:
        file = Transfer(artifact, directory, self._retries.seconds, on_bytes)
        await asyncio.to_thread(file.prepare)
        while not file.done:
            if file.url_is_old:  # asked for when it is needed: URLs last for minutes
                name = artifact.name
                file.renew(await self._run(calls.presigned(self._retries, job_id, name)))
            answer = None if file.complete else await self._receive(file)
            if file.complete:
                file.finish()
                continue
            await asyncio.sleep(file.pause_seconds(answer))
        return file.path

    async def _receive(self, file: Transfer) -> Answer:
        try:
            async with self._files.stream("GET", file.url, headers=file.headers()) as response:
                if file.begin(response.status_code, response.headers):
                    async for data in response.aiter_raw(transfer.CHUNK_BYTES):
                        await asyncio.to_thread(file.write, data)
                return response
        except httpx.TransportError as error:
            return error

    async def _run(self, flow: Flow[_T]) -> _T:
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            answer = await self._do(step)

    async def _do(self, step: Call | Sleep) -> Answer:
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.request(
                step.method,
                step.path,
                params=step.params,
                headers=step.headers,
                json=step.body,
                timeout=step.timeout,
            )
        except httpx.TransportError as error:
            return error

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()
        await self._files.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
