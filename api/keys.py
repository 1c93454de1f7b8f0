"""API keys: made here, kept only as an HMAC. `python -m api.keys TENANT` makes one."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import secrets
import sys

# Lets secret scanners and people recognise a leaked key.
KEY_PREFIX = "spk_"
_RANDOM_BYTES = 32


def new_key() -> str:
    """A new API key with 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_key(key: str, pepper: str) -> str:
    """What is stored of a key: hex HMAC-SHA256 under the pepper."""
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()


def main() -> None:
    """Print a new key, and its entry for STRUCPRUNE_API_KEYS."""
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=main.__doc__)
    parser.add_argument("tenant")
    tenant = parser.parse_args().tenant
    pepper = os.environ.get("STRUCPRUNE_KEY_PEPPER")
    if not pepper:
        sys.exit("Set STRUCPRUNE_KEY_PEPPER to the pepper that the API uses.")
    key = new_key()
    entry = json.dumps({"tenant": tenant, "key_hmac": hash_key(key, pepper)})
    sys.stdout.write(f"key, for the caller:    {key}\nentry, for the service: {entry}\n")


if __name__ == "__main__":
    main()
