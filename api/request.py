"""The body of a submission: a job specification, and options that only the service uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    WrapValidator,
)

from strucprune_core.spec import JobSpec

# What these texts of a request must match; `problems` says it in words.
JOB_ID = r"^job_[0-9a-f]{32}$"
EVENT_ID = r"^\d{1,16}(-\d{1,16})?$"
LABEL = r"^[^=]+="

EventName = Literal[
    "job.queued", "job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled"
]
ENDS: tuple[EventName, ...] = ("job.succeeded", "job.failed", "job.cancelled")


class Notifications(BaseModel):
    """Where to send webhooks about the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook_url: str = Field(
        min_length=1,
        max_length=2048,
        repr=False,
        description="`https://` URL that gets messages by POST, signed with your organisation's "
        "secret (Standard Webhooks). A message is sent until it is accepted (2xx), so it may come "
        "more than once: repetitions have the same `webhook-id`.",
    )
    events: tuple[EventName, ...] = Field(
        default=ENDS,
        min_length=1,
        max_length=6,
        description="Which events to send; by default those that end the job.",
    )
    format: Literal["standard", "slack"] = Field(
        default="standard",
        description="`standard`: JSON for programs. `slack`: one line for people, in the body of "
        "Slack's incoming webhooks, which Mattermost, Teams and Discord (`…/slack`) also take.",
    )

    def fingerprinted(self) -> dict[str, Any]:
        """What the request's fingerprint covers.

        The format only if it is not `standard`, so that requests of versions that had no formats
        keep their fingerprints.
        """
        covered = self.model_dump(mode="json")
        if self.format == "standard":
            del covered["format"]
        return covered


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The body of a job that is not valid as a whole.

    Attributes:
        error: What is wrong with it.
        body: The body.
    """

    error: ValidationError
    body: dict[str, Any]


class JobRequest(JobSpec):
    """A job to run, which one it goes on from, and where to send webhooks about it."""

    extends: str | None = Field(
        default=None,
        pattern=JOB_ID,
        description="A job of yours that has succeeded with `pruning.sizes`: this job takes over "
        "its measurements and adds the sizes named here. All else that determines a result must "
        "be as there; the output must be another one.",
    )
    notifications: Notifications | None = Field(
        default=None, description="Webhooks; none if omitted. See also `…/events`."
    )

    def job_spec(self) -> JobSpec:
        """The job alone, as it is journalled and as workers run it."""
        own = set(JobRequest.model_fields) - set(JobSpec.model_fields)
        return JobSpec.model_validate(self.model_dump(mode="json", exclude=own))


def _or_unfinished(
    body: Any, validate: ModelWrapValidatorHandler[JobRequest]
) -> JobRequest | Unfinished:
    try:
        return validate(body)
    except ValidationError as error:
        if not isinstance(body, dict):
            raise
        return Unfinished(error, body)


PerhapsJob = Annotated[JobRequest, WrapValidator(_or_unfinished)]
"""A `JobRequest`, or an `Unfinished` one where the body is an object; described as the former."""
