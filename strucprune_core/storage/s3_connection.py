"""Connections that abort an answer that arrives too slowly.

A read timeout starts again with each byte, so a server, or a network, that sends one byte a second
would hold a job for years. Here an answer has the read timeout in all, and more time with each byte
that arrives. Only the time spent waiting for it counts. The answer then ends like one that timed
out, which the client library repeats.

Uploads need nothing: Python's own timeout is for a block that is sent as a whole.
"""

from __future__ import annotations

import io
import time
from http.client import HTTPResponse
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

# 128 kbit/s; slower connections are useless for models of gigabytes.
LEAST_BYTES_PER_SECOND = 16 * 1024


class _Answer(io.RawIOBase):
    """The bytes of a socket, as long as they arrive fast enough.

    Args:
        raw: The socket's file.
        seconds: Time that the answer has in addition to that for its bytes.
    """

    def __init__(self, raw: io.RawIOBase, seconds: float) -> None:
        super().__init__()
        self._raw, self._left = raw, seconds

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._left -= time.monotonic() - began - (count or 0) / LEAST_BYTES_PER_SECOND
        if self._left < 0:
            raise TimeoutError("the answer came too slowly")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    fp: io.BufferedReader

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        seconds = sock.gettimeout()
        if seconds is not None:
            self.fp = io.BufferedReader(_Answer(self.fp.detach(), seconds))


class _Connection(AWSHTTPConnection):  # type: ignore[misc]
    response_class = _Response


class _SecureConnection(AWSHTTPSConnection):  # type: ignore[misc]
    response_class = _Response


class _Pool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _SecureConnection


def give_up_slow_answers(client: Any) -> None:
    """Make a boto3 client use such connections."""
    # No public interface sets the connections of a client; a test checks that this works.
    session = client._endpoint.http_session
    session._pool_classes_by_scheme.update(http=_Pool, https=_SecurePool)
