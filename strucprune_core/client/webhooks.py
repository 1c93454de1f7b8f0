"""Signatures of webhooks (Standard Webhooks 1.0, v1): made by the service, checked by receivers.

    from strucprune_core.client.webhooks import verify

    verify(secret, request.headers, request.body)   # raises InvalidSignature

The signature covers id, time and body, so nobody else can make one, and an old message is refused
by its time. Within that time a receiver recognises repetitions by `webhook-id`, which stays the
same when the service tries again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
TOLERANCE_SECONDS = 300
_PREFIX = "whsec_"
_MIN_BYTES, _MAX_BYTES = 24, 64


class InvalidSignature(ValueError):
    """The message is not from the service, or is too old."""


def secret_bytes(secret: str) -> bytes:
    """The key of a secret `whsec_BASE64`.

    Raises:
        ValueError: it is malformed; the message does not quote it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ValueError(
            f"a webhook secret is {_PREFIX} and the base64 of {_MIN_BYTES} to {_MAX_BYTES} bytes"
        )
    return key


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature header of a message; `timestamp` in unix seconds."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digest = hmac.new(secret_bytes(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> str:
    """Check a message. Returns its id, which is the same each time that it is sent.

    Args:
        secret: The tenant's, `whsec_...`.
        headers: Of the request, in any case.
        body: As received, unparsed.
        tolerance_seconds: How far its time may differ from ours.

    Raises:
        InvalidSignature: it is not from the service, or was sent too long ago.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp = lowered.get(ID, ""), lowered.get(TIMESTAMP, "")
    if not message_id or not timestamp.isascii() or not timestamp.isdigit():
        raise InvalidSignature("there is no webhook-id or webhook-timestamp")
    if abs(time.time() - int(timestamp)) > tolerance_seconds:
        raise InvalidSignature("it was sent too long ago, or one of the clocks is wrong")
    expected = sign(secret, message_id, int(timestamp), body).encode()
    # Several while a secret is being replaced.
    offered = lowered.get(SIGNATURE, "").encode("utf-8", "replace").split()
    matches = [hmac.compare_digest(expected, signature) for signature in offered]
    if not any(matches):
        raise InvalidSignature("the signature is not that of this body under this secret")
    return message_id
