"""Sends one message to one receiver: to a checked address, within a time limit."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from api.webhooks.targets import Policy, Resolve, Target, addresses, parse_target
from api.webhooks.timed_calls import TimedCalls

# For everything together: name lookup, connection, request and answer.
TIMEOUT_SECONDS = 10.0
# Bytes read of an answer's body, which is not used. http.client limits its headers (100 lines of
# 64 KiB).
_BODY_BYTES = 1024
_ADDRESSES_TRIED = 2


class NotDelivered(Exception):
    """The receiver did not accept the message.

    Attributes:
        for_good: Whether another try is useless.
        answered: Whether the receiver answered at all.
    """

    def __init__(self, reason: str, *, for_good: bool = False, answered: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good
        self.answered = answered


@dataclass(frozen=True, slots=True)
class WebhookClient:
    """Sends messages.

    Attributes:
        policy: Where messages may go.
        tls: The trusted authorities; None for those of the system.
        resolve: Finds the addresses of a host; None asks the system.
        timeout_seconds: Time limit for a message.
        lookups: Looks up names.
    """

    policy: Policy
    tls: ssl.SSLContext | None = None
    resolve: Resolve | None = None
    timeout_seconds: float = TIMEOUT_SECONDS
    lookups: TimedCalls = field(default_factory=TimedCalls)

    def post(self, url: str, headers: Mapping[str, str], body: bytes, owner: str = "") -> None:
        """Send a message and check that it is accepted (2xx). Redirects are not followed.

        Args:
            url: The receiver.
            headers: Headers of the request.
            body: Body of the request.
            owner: The tenant of the URL. Lookups by slow name servers count for it.

        Raises:
            NotDelivered: the message was not accepted.
            WebhookNotAllowed: webhooks may not go to the URL.
        """
        target = parse_target(url, self.policy)
        deadline = time.monotonic() + self.timeout_seconds
        try:
            found = self.lookups.call(
                owner,
                self.timeout_seconds,
                lambda: addresses(target, self.policy, self.resolve),
            )
        except (OSError, UnicodeError) as error:  # among them TimeoutError
            raise NotDelivered("the host's name does not resolve") from error
        status = self._try_all(target, found[:_ADDRESSES_TRIED], headers, body, deadline)
        if status == http.client.GONE:
            raise NotDelivered("the receiver is gone (410)", for_good=True, answered=True)
        if not 200 <= status < 300:
            raise NotDelivered(f"the receiver answered {status}", answered=True)

    def _try_all(
        self,
        target: Target,
        found: list[str],
        headers: Mapping[str, str],
        body: bytes,
        deadline: float,
    ) -> int:
        failure = "it has no address"
        for address in found:
            try:
                return self._send(target, address, headers, body, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                # The class only: text from another server does not belong in our log.
                failure = type(error).__name__
        raise NotDelivered(f"no answer ({failure})")

    def _send(
        self,
        target: Target,
        address: str,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float,
    ) -> int:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        plain = socket.create_connection((address, target.port), timeout=left)
        stream = self._secured(plain, target.host) if target.secure else plain
        # The timeout of a socket starts anew with every byte, so this timer ends the connection.
        ending = threading.Timer(deadline - time.monotonic(), _shut, (stream,))
        ending.start()
        connection = http.client.HTTPConnection(target.host, target.port)
        # The connection must not look up the host again, now or after an error.
        connection.sock, connection.auto_open = stream, 0
        try:
            if isinstance(stream, ssl.SSLSocket):
                stream.do_handshake()
            connection.request("POST", target.path, body, {"Host": _authority(target), **headers})
            response = connection.getresponse()
            response.read(_BODY_BYTES)
            return response.status
        finally:
            ending.cancel()
            connection.close()
            stream.close()

    def _secured(self, plain: socket.socket, host: str) -> ssl.SSLSocket:
        context = self.tls or ssl.create_default_context()
        try:
            return context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise


def _authority(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    usual = 443 if target.secure else 80
    return host if target.port == usual else f"{host}:{target.port}"


def _shut(connection: socket.socket) -> None:
    """End reads and writes. The TLS layer's own shutdown would wait for the other side."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
