"""The client that blocks. Methods may be called from several threads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
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


class StrucPruneClient:
    """A connection to one service, under one API key. A context manager.

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
        self._http = httpx.Client(**connection(url, api_key, verify))
        self._files = httpx.Client(**transfer.connection(verify))
        self._retries = Retries(retry_seconds)

    def submit(self, spec: Spec, *, idempotency_key: str | None = None) -> Job:
        """Submit a job, a `JobSpec` or a mapping like it.

        Args:
            spec: The job.
            idempotency_key: The same key and job give the same job, also from another process;
                None makes one up for this call.

        Raises:
            RequestInvalid: the job cannot work; `problem.errors` names the fields.
        """
        return self._run(calls.submit(self._retries, spec, idempotency_key))

    def validate(self, spec: Spec) -> Validation:
        """Say what is wrong with a job, or what it would cost, without submitting it."""
        return self._run(calls.validate(self._retries, spec))

    def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound: there is none, or it is another tenant's.
        """
        return self._run(calls.get(self._retries, job_id))

    def list(
        self,
        *,
        state: str | None = None,
        label: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = calls.MAX_PAGE_SIZE,
    ) -> Iterator[Job]:
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
            page = self._run(
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
            yield from page.data
            cursor = page.next_cursor
            if cursor is None:
                return

    def wait(
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
        return self._run(calls.wait(self._retries, job_id, timeout_seconds, on_change))

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
        """The bytes of one stream; none if there was none to be had."""
        headers = follower.begin()
        try:
            with self._http.stream(
                "GET", follower.path, headers=headers, timeout=follow.TIMEOUT
            ) as response:
                if response.is_success:
                    yield from response.iter_bytes()
        except httpx.TransportError:
            return  # catching up says what is wrong, if it stays so

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it waits, at its next safe point if it runs.

        Raises:
            JobConflict: it has ended otherwise.
        """
        return self._run(calls.control(self._retries, job_id, "cancel"))

    def pause(self, job_id: str) -> Job:
        """Pause a job: at once if it waits, at its next safe point if it runs.

        Raises:
            JobConflict: it has ended.
        """
        return self._run(calls.control(self._retries, job_id, "pause"))

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it goes on from its last finished layer.

        Raises:
            JobConflict: it has ended, or is being cancelled.
        """
        return self._run(calls.control(self._retries, job_id, "resume"))

    def retry(self, job_id: str) -> Job:
        """Run a failed or cancelled job again, from its last finished layer.

        Raises:
            JobConflict: it has not ended yet, or has succeeded.
        """
        return self._run(calls.control(self._retries, job_id, "retry"))

    def delete(self, job_id: str, *, outputs: bool = False) -> None:
        """Remove a job that is over.

        Args:
            job_id: Its id.
            outputs: Whether the files that it has published go too.

        Raises:
            JobConflict: it is not over; cancel it first.
            JobNotFound: there is none (any more).
        """
        self._run(calls.delete(self._retries, job_id, outputs=outputs))

    def logs(self, job_id: str, *, after: str = "0") -> Iterator[LogLine]:
        """What a job's process has logged up to now, in all runs, oldest line first.

        Args:
            job_id: Its id.
            after: Id of the last line already seen; "0" begins with the oldest that is kept.
        """
        while True:
            page = self._run(calls.log_page(self._retries, job_id, after))
            yield from page.data
            if not page.data:
                return
            after = page.next_after

    def report(self, job_id: str) -> dict[str, Any]:
        """The report of a succeeded job, which `strucprune_core.Report` reads.

        Raises:
            JobConflict: it has not succeeded.
        """
        return self._run(calls.report(self._retries, job_id))

    def report_html(self, job_id: str) -> str:
        """The report as a page that needs nothing else."""
        return self._run(calls.report_html(self._retries, job_id))

    def artifacts(self, job_id: str, *, presign: bool = False) -> Artifacts:
        """The files of a succeeded job; with `presign`, with short-lived download URLs.

        Raises:
            JobConflict: it has not succeeded.
        """
        return self._run(calls.artifacts(self._retries, job_id, presign=presign))

    def download(
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
        found = self.artifacts(job_id)
        return [self._fetch(job_id, file, Path(directory), on_bytes) for file in found]

    def _fetch(
        self, job_id: str, artifact: Artifact, directory: Path, on_bytes: OnBytes | None
    ) -> Path:
        file = Transfer(artifact, directory, self._retries.seconds, on_bytes)
        file.prepare()
        while not file.done:
            if file.url_is_old:  # asked for when it is needed: URLs last for minutes
                name = artifact.name
                file.renew(self._run(calls.presigned(self._retries, job_id, name)))
            answer = None if file.complete else self._receive(file)
            if file.complete:
                file.finish()
                continue
            time.sleep(file.pause_seconds(answer))
        return file.path

    def _receive(self, file: Transfer) -> Answer:
        try:
            with self._files.stream("GET", file.url, headers=file.headers()) as response:
                if file.begin(response.status_code, response.headers):
                    for data in response.iter_raw(transfer.CHUNK_BYTES):
                        file.write(data)
                return response
        except httpx.TransportError as error:
            return error

    def _run(self, flow: Flow[_T]) -> _T:
        answer: Answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                result: _T = end.value
                return result
            answer = self._do(step)

    def _do(self, step: Call | Sleep) -> Answer:
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.request(
                step.method,
                step.path,
                params=step.params,
                headers=step.headers,
                json=step.body,
                timeout=step.timeout,
            )
        except httpx.TransportError as error:
            return error

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
