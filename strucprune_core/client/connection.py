"""Connecting to the service: URL and key, from arguments or the environment."""

from __future__ import annotations

import os
from typing import Any

from strucprune_core import __version__
from strucprune_core.errors import InvalidSpec

URL_VARIABLE, KEY_VARIABLE = "STRUCPRUNE_URL", "STRUCPRUNE_API_KEY"


def connection(url: str | None, api_key: str | None, verify: Any) -> dict[str, Any]:
    """Arguments of the HTTP client that talks to the service.

    Raises:
        InvalidSpec: URL or key are missing or malformed.
    """
    base = url or os.environ.get(URL_VARIABLE, "")
    key = api_key or os.environ.get(KEY_VARIABLE, "")
    if not base.startswith(("https://", "http://")):
        raise InvalidSpec(
            "the URL of the service is not known",
            remedy=f"Set {URL_VARIABLE} to a URL such as https://prune.example.com, or pass it.",
        )
    if not key:
        raise InvalidSpec(
            "there is no API key",
            remedy=f"Set {KEY_VARIABLE} to your key. Operators make keys with "
            "strucprune keys create.",
        )
    if not key.isascii() or not key.isprintable():
        # Not shown: it may be a key with a stray character.
        raise InvalidSpec("the API key has characters that no key has", remedy="Copy it again.")
    return {
        "base_url": base.rstrip("/"),
        "headers": {
            "Authorization": f"Bearer {key}",
            "User-Agent": f"strucprune/{__version__}",
        },
        "verify": verify,
        # A redirect would take the key elsewhere.
        "follow_redirects": False,
    }
