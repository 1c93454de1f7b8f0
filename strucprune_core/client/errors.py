"""Failures of the client, as one tree.

ClientError                a StrucPruneError: has message, remedy, code
├── Unreachable            no answer, or none of a StrucPrune service, for `retry_seconds`
├── WaitTimeout            the job did not end in the time given
├── DownloadFailed         a file cannot be fetched, or is not the one that the job wrote
├── NoSuchId               no job has an id that begins so
├── AmbiguousId            several jobs have
└── ApiProblem             the service refused; `.problem` is its answer (RFC 9457)
├── NotAllowed         401, 403: the key
├── JobNotFound        404: no such job, or not yours
├── JobConflict        409: the job's state forbids it
├── RequestInvalid     400, 413, 415, 422: `.problem.errors` names the fields
├── RateLimited        429, after waiting as asked and trying for `retry_seconds`
└── ServiceUnavailable 5xx, after trying for `retry_seconds`
"""

from __future__ import annotations

from typing import Any, ClassVar

from strucprune_core.client.models import FieldError, Problem
from strucprune_core.errors import StrucPruneError


class ClientError(StrucPruneError):
    """A request to the service failed."""

    code: ClassVar[str] = "client_error"


class Unreachable(ClientError):
    """The service did not answer."""

    code: ClassVar[str] = "unreachable"
    retryable: ClassVar[bool] = True
    usual_remedy: ClassVar[str | None] = "Check the URL, and that the service runs."


class WaitTimeout(ClientError):
    """The job did not end in time. It continues; wait again."""

    code: ClassVar[str] = "wait_timeout"
    retryable: ClassVar[bool] = True


class DownloadFailed(ClientError):
    """A file cannot be fetched, or is not the file that the job wrote."""

    code: ClassVar[str] = "download_failed"


class NoSuchId(ClientError):
    """No job has an id that begins like this."""

    code: ClassVar[str] = "no_such_id"
    usual_remedy: ClassVar[str | None] = "List the jobs: strucprune jobs list."


class AmbiguousId(ClientError):
    """Several jobs have an id that begins like this."""

    code: ClassVar[str] = "ambiguous_id"
    usual_remedy: ClassVar[str | None] = "Give more digits of the id."


# By code, where the service's own words do not say what to do.
_REMEDIES = {
    "unauthorized": "Check the key. Operators make keys with strucprune keys create.",
    "insufficient_scope": "Use a key that has it. Operators make one with strucprune keys create "
    "--scope.",
    "job_not_found": "List your jobs: strucprune jobs list.",
    "artifact_gone": "If somebody has moved the files, read them there. Else run the job again.",
}


class ApiProblem(ClientError):
    """The service refused a request.

    Args:
        problem: Its answer; `problem.code` is stable and may be compared.
    """

    code: ClassVar[str] = "api_problem"

    def __init__(self, problem: Problem) -> None:
        lines = [problem.detail or problem.title or f"The service answered {problem.status}"]
        if len(problem.errors) > 1:  # The detail covers a single one.
            lines += [f"  {_place(error)}{error.detail}" for error in problem.errors]
        super().__init__("\n".join(lines), remedy=_REMEDIES.get(problem.code))
        self.problem = problem

    def as_dict(self) -> dict[str, Any]:
        """As every error, with the problem's own code, status and request id."""
        return {
            **super().as_dict(),
            "code": self.problem.code,
            "status": self.problem.status,
            "request_id": self.problem.request_id,
        }

    def __str__(self) -> str:
        return self.message


class NotAllowed(ApiProblem):
    """The key is missing, unknown, expired or revoked, or lacks the scope."""


class JobNotFound(ApiProblem):
    """There is no such job, or it is another tenant's; or one of its files is missing."""


class JobConflict(ApiProblem):
    """The state of the job forbids it."""


class RequestInvalid(ApiProblem):
    """The request is wrong; sending it again will not help."""


class RateLimited(ApiProblem):
    """Too many requests, or a quota is used up."""

    retryable: ClassVar[bool] = True


class ServiceUnavailable(ApiProblem):
    """The service, or something that it depends on, does not work now."""

    retryable: ClassVar[bool] = True


_BY_STATUS: dict[int, type[ApiProblem]] = {
    400: RequestInvalid,
    401: NotAllowed,
    403: NotAllowed,
    404: JobNotFound,
    409: JobConflict,
    413: RequestInvalid,
    415: RequestInvalid,
    422: RequestInvalid,
    429: RateLimited,
}


def from_problem(problem: Problem) -> ApiProblem:
    """The error of the problem's status."""
    if problem.status >= 500:
        return ServiceUnavailable(problem)
    return _BY_STATUS.get(problem.status, ApiProblem)(problem)


def _place(error: FieldError) -> str:
    place = error.pointer or error.parameter
    return f"{place}: " if place else ""
