"""The body of a submission: a job specification, and options that only the service uses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.spec import JobSpec

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


class JobRequest(JobSpec):
    """A job to run, and where to send webhooks about it."""

    notifications: Notifications | None = Field(
        default=None, description="Webhooks; none if omitted. See also `…/events`."
    )

    def job_spec(self) -> JobSpec:
        """The job alone, as it is journalled and as workers run it."""
        return JobSpec.model_validate(self.model_dump(mode="json", exclude={"notifications"}))
