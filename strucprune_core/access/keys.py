"""API keys: only their holder knows them; the service keeps an HMAC. No torch.

A key is `spk_ID_SECRET` and eight hex digits. ID names its record and may be shown; SECRET has 256
random bits; the digits are a tag, an HMAC of the rest. The tag alone exposes an invented key, so
nobody without a key can make the service read its store.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

# "admin" shows what the service does for all tenants, and is given by name only.
Scope = Literal["jobs:read", "jobs:write", "admin"]
USUAL_SCOPES: frozenset[Scope] = frozenset({"jobs:read", "jobs:write"})
# Tenants are part of Redis keys.
TENANT_PATTERN = r"^[A-Za-z0-9_-]{1,63}$"
Tenant = Annotated[str, Field(pattern=TENANT_PATTERN)]
MIN_PEPPER_LENGTH = 16

# Lets secret scanners and people recognise a leaked key.
_PREFIX = "spk_"
_ID_BYTES = 8
_SECRET_BYTES = 32
_TAG_HEX_DIGITS = 8
_KEY = re.compile(r"spk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}[0-9a-f]{8}")


class KeyRecord(BaseModel):
    """What is kept of a key.

    Attributes:
        id: The part of the key that names this record.
        key_hmac: Hex HMAC-SHA256 of the whole key under the pepper.
        name: For people: whose key it is, and what for.
        expires_at: From then on it is refused; None: never.
        revoked_at: Since then it is refused.
    """

    # Fields that a newer release added are ignored, so that a rollback locks nobody out.
    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: Literal[1] = 1
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    tenant: Tenant
    scopes: frozenset[Scope] = USUAL_SCOPES
    key_hmac: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    name: str = Field(default="", max_length=255)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether the key is accepted at this time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_key(pepper: str) -> str:
    """A new API key with 256 random bits.

    Args:
        pepper: The service's secret; without it the key is worth nothing.
    """
    body = f"{_PREFIX}{secrets.token_hex(_ID_BYTES)}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return body + _tag(body, pepper)


def hash_key(key: str, pepper: str) -> str:
    """What is kept of a key: hex HMAC-SHA256 under the pepper."""
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()


def key_id(key: str, pepper: str) -> str | None:
    """The id of a key that was made under this pepper; None for any other text."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    body, tag = key[:-_TAG_HEX_DIGITS], key[-_TAG_HEX_DIGITS:]
    return match[1] if hmac.compare_digest(tag, _tag(body, pepper)) else None


def _tag(body: str, pepper: str) -> str:
    # `hash_key` never sees this message otherwise: the tag reveals nothing about the stored HMAC.
    return hash_key(f"tag of {body}", pepper)[:_TAG_HEX_DIGITS]
