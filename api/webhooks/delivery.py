"""One message to one receiver: to a checked address, in bounded time, whatever it answers."""

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

# For everything together: looking the name up, connecting, sending, and all of the answer.
TIMEOUT_SECONDS = 10.0
# An answer's headers are bounded by http.client (100 lines of 64 KiB); of its body nothing is used.
_BODY_BYTES = 1024
_ADDRESSES_TRIED = 2


class NotDelivered(Exception):
    """The receiver did not take the message.

    Attributes:
        for_good: Whether it never will.
        answered: Whether it said so, rather than nothing.
    """

    def __init__(self, reason: str, *, for_good: bool = False, answered: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good
        self.answered = answered


@dataclass(frozen=True, slots=True)
class WebhookClient:
    """Sends messages.

    Attributes:
        policy: Where they may go.
        tls: Whom to trust; None trusts what the system trusts.
        resolve: Addresses of a host; None asks the system.
        timeout_seconds: For a message, all in all.
        lookups: Looks names up.
    """

    policy: Policy
    tls: ssl.SSLContext | None = None
    resolve: Resolve | None = None
    timeout_seconds: float = TIMEOUT_SECONDS
    lookups: TimedCalls = field(default_factory=TimedCalls)

    def post(self, url: str, headers: Mapping[str, str], body: bytes, owner: str = "") -> None:
        """Send a message and see that it is taken (2xx). Redirects are not followed.

        Args:
            url: Where to.
            headers: Of the request.
            body: Its body.
            owner: Who gave the URL: whose slow name servers count together.

        Raises:
            NotDelivered: it was not.
            WebhookNotAllowed: the URL leads where no webhook may go.
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
                # The class only: what a stranger's server says is not repeated in our log.
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
        # A timeout of a socket starts anew with every byte; this one does not.
        ending = threading.Timer(deadline - time.monotonic(), _shut, (stream,))
        ending.start()
        connection = http.client.HTTPConnection(target.host, target.port)
        # It is not to look the host up again, neither now nor after the connection broke.
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
    """Wake whoever reads or writes; not by the TLS layer's own method, which would wait."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
