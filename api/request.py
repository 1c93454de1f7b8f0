"""What a client POSTs: a job specification, and what concerns the service alone."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from strucprune_core.spec import JobSpec

EventName = Literal[
    "job.queued", "job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled"
]
ENDS: tuple[EventName, ...] = ("job.succeeded", "job.failed", "job.cancelled")


class Notifications(BaseModel):
    """Whom to tell what happens to the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook_url: str = Field(
        min_length=1,
        max_length=2048,
        repr=False,
        description="`https://` URL that messages are POSTed to, signed with your organisation's "
        "secret (Standard Webhooks). Sent until taken (2xx), so perhaps more than once: tell "
        "repetitions by `webhook-id`.",
    )
    events: tuple[EventName, ...] = Field(
        default=ENDS, min_length=1, max_length=6, description="Which; by default how it ended."
    )


class JobRequest(JobSpec):
    """A job to run, and whom to tell about it."""

    notifications: Notifications | None = Field(
        default=None, description="Omit to be told nothing; see also `…/events`."
    )

    def job_spec(self) -> JobSpec:
        """The job itself: what is journalled, and what workers run."""
        return JobSpec.model_validate(self.model_dump(mode="json", exclude={"notifications"}))
