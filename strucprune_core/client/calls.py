"""What the service can be asked for, as flows (see `flow`): the methods of both clients.

`operations` makes methods of these functions: it fills in their first argument.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from strucprune_core.client.errors import JobNotFound, Unreachable, WaitTimeout, from_problem
from strucprune_core.client.flow import FIRST_DELAY_SECONDS, Call, Flow, Pages, Retries, Sleep
from strucprune_core.client.models import (
    Artifact,
    ArtifactList,
    Event,
    EventPage,
    Job,
    JobPage,
    LogLine,
    LogPage,
    ModelList,
    Problem,
    Quota,
    Validation,
    Worker,
    WorkerList,
)
from strucprune_core.spec import JobSpec

JOBS = "/v1/pruning-jobs"
# One long-poll. The service holds it for a minute at most, proxies often for less.
WAIT_SECONDS = 25
MAX_PAGE_SIZE = 100
LOG_PAGE_SIZE = 1000

Spec = JobSpec | Mapping[str, Any]
_A = TypeVar("_A", bound=BaseModel)


def submit(
    retries: Retries,
    spec: Spec,
    *,
    extends: str | None = None,
    idempotency_key: str | None = None,
) -> Flow[Job]:
    """Submit a job, a `JobSpec` or a mapping like it.

    Args:
        retries: The client's.
        spec: The job.
        extends: A finished job whose measurements this one takes over (see `extend`).
        idempotency_key: The same key and job give the same job, also from another process;
            None makes one up for this call.

    Raises:
        RequestInvalid: the job cannot work; `problem.errors` names the fields.
        JobConflict: another job that has not ended has the output.
    """
    headers = {"Idempotency-Key": idempotency_key or f"client-{uuid4().hex}"}
    body = _body(spec) if extends is None else {**_body(spec), "extends": extends}
    return _job((yield from retries.send(Call("POST", JOBS, headers=headers, body=body))))


def extend(
    retries: Retries,
    job_id: str,
    sizes: Sequence[float],
    output: str,
    *,
    idempotency_key: str | None = None,
) -> Flow[Job]:
    """Submit a job that adds sizes to a finished one, from its measurements.

    Args:
        retries: The client's.
        job_id: A job that has succeeded with `pruning.sizes`.
        sizes: The further sparsities.
        output: Where they are published: an empty prefix.
        idempotency_key: As for `submit`.

    Returns:
        The new job, with a report of its own.

    Raises:
        RequestInvalid: the job cannot be extended; `problem.errors` says why.
        JobNotFound: there is none, or it is another tenant's.
        JobConflict: another job that has not ended has the output.
    """
    spec = (yield from get(retries, job_id)).spec
    spec = {
        **spec,
        "pruning": {**spec["pruning"], "sizes": [*sizes]},
        "output": {**spec["output"], "uri_prefix": output},
    }
    return (yield from submit(retries, spec, extends=job_id, idempotency_key=idempotency_key))


def validate(retries: Retries, spec: Spec) -> Flow[Validation]:
    """Say what is wrong with a job, or what it would cost, without submitting it."""
    call = Call("POST", f"{JOBS}/validate", body=_body(spec))
    return _parse((yield from retries.send(call)), Validation)


def get(retries: Retries, job_id: str) -> Flow[Job]:
    """The job as it is now.

    Raises:
        JobNotFound: there is none, or it is another tenant's.
    """
    return _job((yield from retries.send(Call("GET", path(job_id)))))


def jobs(
    retries: Retries,
    *,
    state: str | None = None,
    label: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    page_size: int = MAX_PAGE_SIZE,
) -> Pages[Job]:
    """All jobs, newest first. Pages are requested as the jobs are consumed.

    Args:
        retries: The client's.
        state: Only jobs in this state.
        label: Only jobs with this label, `name=value`.
        created_after: Only later ones; with a time zone.
        created_before: Only earlier ones.
        page_size: Jobs per request, at most 100.
    """
    wanted: dict[str, str | int | None] = {
        "state": state,
        "label": label,
        "created_after": created_after.isoformat() if created_after else None,
        "created_before": created_before.isoformat() if created_before else None,
        "limit": page_size,
    }

    def read(cursor: str) -> Flow[tuple[list[Job], str | None]]:
        given = {**wanted, "cursor": cursor or None}
        params = {name: value for name, value in given.items() if value is not None}
        page = _parse((yield from retries.send(Call("GET", JOBS, params=params))), JobPage)
        return page.data, page.next_cursor

    return Pages(read, "")


def wait(
    retries: Retries,
    job_id: str,
    *,
    timeout_seconds: float | None = None,
    on_change: Callable[[Job], None] | None = None,
) -> Flow[Job]:
    """The job once it has succeeded, failed or been cancelled.

    Args:
        retries: The client's.
        job_id: Its id.
        timeout_seconds: None waits for as long as it takes.
        on_change: Called with the job at once, and each time that it changes.

    Raises:
        WaitTimeout: it has not ended by then. It continues.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    job = yield from get(retries, job_id)
    while True:
        if on_change is not None:
            on_change(job)
        if job.ended:
            return job
        job = yield from _changed(retries, job, deadline)


def _changed(retries: Retries, job: Job, deadline: float | None) -> Flow[Job]:
    while True:
        left = WAIT_SECONDS if deadline is None else int(deadline - time.monotonic() + 1)
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeout(f"The job {job.id} is still {job.state}", remedy="Wait again.")
        held = max(1, min(WAIT_SECONDS, left))
        headers = {"Prefer": f"wait={held}", "If-None-Match": job.etag or '""'}
        call = Call("GET", path(job.id), headers=headers, wait_seconds=held)
        response = yield from retries.send(call)
        if response.status_code != httpx.codes.NOT_MODIFIED:
            return _job(response)
        if "Preference-Applied" not in response.headers:
            yield Sleep(1.0)  # A proxy does not let the service hold the request.


def cancel(retries: Retries, job_id: str) -> Flow[Job]:
    """Cancel a job: at once if it waits, at its next safe point if it runs.

    Raises:
        JobConflict: it has ended otherwise.
    """
    return _control(retries, job_id, "cancel")


def pause(retries: Retries, job_id: str) -> Flow[Job]:
    """Pause a job: at once if it waits, at its next safe point if it runs.

    Raises:
        JobConflict: it has ended.
    """
    return _control(retries, job_id, "pause")


def resume(retries: Retries, job_id: str) -> Flow[Job]:
    """Queue a paused job again; it continues from its last finished layer.

    Raises:
        JobConflict: it has ended, or is being cancelled.
    """
    return _control(retries, job_id, "resume")


def retry(retries: Retries, job_id: str) -> Flow[Job]:
    """Run a failed or cancelled job again, from its last finished layer.

    Raises:
        JobConflict: it has not ended yet, or has succeeded.
    """
    return _control(retries, job_id, "retry")


def _control(retries: Retries, job_id: str, verb: str) -> Flow[Job]:
    return _job((yield from retries.send(Call("POST", path(job_id, verb)))))


def delete(retries: Retries, job_id: str, *, outputs: bool = False) -> Flow[None]:
    """Remove a job that has ended.

    Args:
        retries: The client's.
        job_id: Its id.
        outputs: Whether to remove the files that it has published, too.

    Raises:
        JobConflict: it has not ended; cancel it first.
        JobNotFound: there is none (any more).
    """
    params = {"outputs": _flag(outputs)}
    yield from retries.send(Call("DELETE", path(job_id), params, gone_is_done=True))


def logs(retries: Retries, job_id: str, *, after: str = "0") -> Pages[LogLine]:
    """What a job's processes have logged up to now, in all runs, oldest line first.

    Args:
        retries: The client's.
        job_id: Its id.
        after: Id of the last line already seen; "0" begins with the oldest that is kept.
    """

    def read(last: str) -> Flow[tuple[list[LogLine], str | None]]:
        call = Call("GET", path(job_id, "logs"), {"after": last, "limit": LOG_PAGE_SIZE})
        page = _parse((yield from retries.send(call)), LogPage)
        return page.data, page.next_after if page.data else None

    return Pages(read, after)


def report(retries: Retries, job_id: str) -> Flow[dict[str, Any]]:
    """The report of a succeeded job, which `strucprune_core.Report` reads.

    Raises:
        JobConflict: it has not succeeded.
    """
    response = yield from retries.send(Call("GET", path(job_id, "report"), {"format": "json"}))
    document: dict[str, Any] = response.json()
    return document


def report_html(retries: Retries, job_id: str) -> Flow[str]:
    """The report as an HTML page that needs no other file.

    Raises:
        JobConflict: the job has not succeeded.
    """
    response = yield from retries.send(Call("GET", path(job_id, "report"), {"format": "html"}))
    return response.text


def artifacts(retries: Retries, job_id: str, *, presign: bool = False) -> Flow[list[Artifact]]:
    """The files of a succeeded job; with `presign`, with short-lived download URLs.

    Raises:
        JobConflict: it has not succeeded.
    """

    def read(after: str) -> Flow[tuple[list[Artifact], str | None]]:
        more = {"after": after} if after else {}
        call = Call("GET", path(job_id, "artifacts"), {"presign": _flag(presign), **more})
        page = _parse((yield from retries.send(call)), ArtifactList)
        return page.data, page.next_after

    pages, files = Pages(read, ""), []
    while pages.mark is not None:
        files += yield from pages.next()
    return files


def presigned(retries: Retries, job_id: str, name: str) -> Flow[list[Artifact]]:
    """One file of a finished job with a fresh download URL; an older service lists all."""
    call = Call("GET", path(job_id, "artifacts"), {"presign": _flag(True), "name": name})
    return _parse((yield from retries.send(call)), ArtifactList).data


def models(retries: Retries, prefix: str = "", *, limit: int = 20) -> Flow[list[str]]:
    """URIs of models that the caller's jobs may name and that begin like this.

    Args:
        retries: The client's.
        prefix: The beginning of a URI; "" for all below the tenant's allowed prefixes.
        limit: Most models, at most 100.
    """
    call = Call("GET", "/v1/models", {"prefix": prefix, "limit": limit})
    return _parse((yield from retries.send(call)), ModelList).data


def quota(retries: Retries) -> Flow[Quota]:
    """The limits of the caller's tenant, and what it has of them."""
    return _parse((yield from retries.send(Call("GET", "/v1/quota"))), Quota)


def workers(retries: Retries) -> Flow[list[Worker]]:
    """The workers, by name; for keys with the scope `admin`.

    Raises:
        NotAllowed: the key lacks that scope.
    """
    return _parse((yield from retries.send(Call("GET", "/v1/workers"))), WorkerList).data


def catch_up(
    retries: Retries, job_id: str, after: str, *, ended: bool
) -> Flow[tuple[list[Event], bool]]:
    """Events that a stream which broke off may have missed, and whether there will be no more.

    `ended` says whether a run ended with the last event that was seen.
    """
    try:
        # The job first: if it has ended by now, its last event is among those read after.
        job = yield from get(retries, job_id)
        call = Call("GET", path(job_id, "events"), {"after": after, "limit": 1000})
        missed = _parse((yield from retries.send(call)), EventPage).data
    except JobNotFound:
        if ended:
            return [], True  # Deleted meanwhile.
        raise
    over = job.ended and not missed
    if not over:
        yield Sleep(FIRST_DELAY_SECONDS)  # The stream may have ended at once: do not hurry.
    return missed, over


def path(job_id: str, *more: str) -> str:
    """Path of a job. A malformed id is refused here, so that it cannot lead elsewhere."""
    if not job_id.replace("_", "").isalnum() or not job_id.isascii():
        raise from_problem(
            Problem(status=404, code="job_not_found", detail=f"{job_id!r} is not the id of a job.")
        )
    return "/".join((JOBS, job_id, *more))


def _body(spec: Spec) -> Any:
    if isinstance(spec, JobSpec):
        return spec.model_dump(mode="json")
    return json.loads(json.dumps(dict(spec)))  # Fails here, not in the middle of a request.


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _parse(response: httpx.Response, kind: type[_A], **more: Any) -> _A:
    try:
        return kind.model_validate({**response.json(), **more})
    except (ValidationError, ValueError, TypeError):
        raise Unreachable("What answers at this URL is not a StrucPrune service") from None


def _job(response: httpx.Response) -> Job:
    return _parse(response, Job, etag=response.headers.get("ETag"))
