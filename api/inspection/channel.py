"""Messages between the API and a helper: a JSON header and raw bytes, both of a bounded size.

JSON, not pickle: a helper reads hostile files, and an attacker who takes it over must not get into
the API.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

_LENGTHS = struct.Struct("!II")
# The longest header is a verdict or a page of a listing: some hundred kilobytes.
MAX_HEADER_BYTES = 4 * 2**20


class ChannelBroken(Exception):
    """The other side is gone, or breaks the protocol."""


class TooLate(Exception):
    """The other side has not answered in time."""


class Channel:
    """One end of a socket pair.

    Args:
        connection: The socket, which the channel closes.
        max_payload_bytes: Limit for the payload of a received message.
    """

    def __init__(self, connection: socket.socket, max_payload_bytes: int) -> None:
        self._connection = connection
        self._max_payload_bytes = max_payload_bytes

    def send(self, header: dict[str, Any], payload: bytes | bytearray = b"") -> None:
        """Send a message.

        Raises:
            ChannelBroken: the other side is gone.
            TooLate: the other side does not read.
        """
        data = json.dumps(header, separators=(",", ":")).encode()
        try:
            self._connection.sendall(_LENGTHS.pack(len(data), len(payload)) + data)
            self._connection.sendall(payload)
        except TimeoutError as error:
            raise TooLate from error
        except OSError as error:
            raise ChannelBroken(str(error)) from error

    def receive(self, seconds: float | None = None) -> tuple[dict[str, Any], bytearray]:
        """The next message: header and payload.

        Args:
            seconds: Time limit for all of it; None waits for ever.

        Raises:
            ChannelBroken: the other side is gone, or sent something else.
            TooLate: the message did not come in time.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        header_bytes, payload_bytes = _LENGTHS.unpack(self._take(_LENGTHS.size, deadline))
        if header_bytes > MAX_HEADER_BYTES or payload_bytes > self._max_payload_bytes:
            raise ChannelBroken(f"a message of {header_bytes} and {payload_bytes} bytes")
        data = self._take(header_bytes, deadline)
        payload = self._take(payload_bytes, deadline)
        try:
            header = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ChannelBroken("a message that is no JSON") from error
        if not isinstance(header, dict):
            raise ChannelBroken("a message that is no object")
        return header, payload

    def _take(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TooLate
            try:
                self._connection.settimeout(left)
                count = self._connection.recv_into(view[filled:])
            except TimeoutError as error:
                raise TooLate from error
            except OSError as error:
                raise ChannelBroken(str(error)) from error
            if count == 0:
                raise ChannelBroken("the other side has closed the channel")
            filled += count
        return data

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()
