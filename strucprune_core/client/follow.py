"""Follows a job's events over streams that break, without sockets: where the next one begins.

No event alone says that a job is over: a failed or cancelled job may be retried, and its events are
those of all runs. So a client reads until the service ends the stream, and then asks for the job
(`calls.catch_up`).
"""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from strucprune_core.client.calls import path
from strucprune_core.client.flow import CONNECT_SECONDS
from strucprune_core.client.models import Event
from strucprune_core.client.sse import Decoder

# The service sends something on a stream every 15 s.
STREAM_SILENCE_SECONDS = 45.0
TIMEOUT = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)


class Follower:
    """How far a job's events have been read.

    Args:
        job_id: Whose events.
        after: Id of the last event already seen; "0" for none.

    Attributes:
        after: Id of the last event handed out.
        ended: Whether a run of the job ended with it.
    """

    def __init__(self, job_id: str, after: str) -> None:
        self.path = path(job_id, "events")
        self.after = after
        self.ended = False
        self._decoder = Decoder()

    def begin(self) -> dict[str, str]:
        """Headers of a new stream, which continues where the last one ended."""
        self._decoder = Decoder()
        return {"Accept": "text/event-stream", "Last-Event-ID": self.after}

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete."""
        events = []
        for message in self._decoder.feed(data):
            try:
                events.append(Event.model_validate_json(message.data))
            except ValidationError:
                continue  # An event that this release does not know.
        return self.note(events)

    def note(self, events: list[Event]) -> list[Event]:
        """Remember events that are handed out."""
        for event in events:
            self.after, self.ended = event.id, event.ends_run
        return events
