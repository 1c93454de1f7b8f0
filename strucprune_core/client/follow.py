"""Following a job's events over streams that break: what was seen, and where to go on.

Without its sockets; the clients feed it. An event alone cannot tell that the job is over: a failed
or cancelled job may be retried, and its events hold all runs. So they go on until the service ends
the stream, and then ask (`calls.catch_up`).
"""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from strucprune_core.client.calls import CONNECT_SECONDS, STREAM_SILENCE_SECONDS, path
from strucprune_core.client.models import Event
from strucprune_core.client.sse import Decoder

TIMEOUT = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)


class Follower:
    """The place in a job's events.

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
        """Headers of a new stream, which goes on where the last one ended."""
        self._decoder = Decoder()
        return {"Accept": "text/event-stream", "Last-Event-ID": self.after}

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete."""
        events = []
        for message in self._decoder.feed(data):
            try:
                events.append(Event.model_validate_json(message.data))
            except ValidationError:
                continue  # of a kind that this release does not know
        return self.note(events)

    def note(self, events: list[Event]) -> list[Event]:
        """Remember events that are handed out."""
        for event in events:
            self.after, self.ended = event.id, event.ends_run
        return events
