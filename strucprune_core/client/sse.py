"""Server-sent events, read from bytes as they come (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream."""

    id: str
    event: str
    data: str


class Decoder:
    """Turns bytes, cut anywhere, into messages. Lines end with LF or CR LF, as the service's do.

    JSON may hold U+2028 and the like, so text must not be split where Python's `splitlines` would.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._id = self._event = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [message for line in lines if (message := self._line(line)) is not None]

    def _line(self, raw: bytes) -> Message | None:
        line = raw.removesuffix(b"\r").decode("utf-8", errors="replace")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "event":
            self._event = value
        return None

    def _dispatch(self) -> Message | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return Message(self._id, event, "\n".join(data)) if data else None
