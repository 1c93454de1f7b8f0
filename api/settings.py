"""Configuration of the API and the reconciler, from environment variables `STRUCPRUNE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from api.inspection.inspectors import HELPERS
from api.jobs.environment import CONFIG, S3, BrokerUrl, RedisUrl
from api.jobs.limits import LimitSettings
from api.jobs.logs import LogFormat
from api.webhooks.targets import Policy
from strucprune_core.access.keys import ALL_SCOPES, MIN_PEPPER_LENGTH, Scope, Tenant
from strucprune_core.client.webhooks import secret_bytes
from strucprune_core.spec import Uri
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.uri import parse_uri


def _check_prefix(prefix: str) -> str:
    location = parse_uri(prefix)
    # Also a mistyped scheme ("s3:/bucket") is a relative path.
    if location.scheme == "file" and not location.key.startswith("/"):
        raise ValueError("a prefix is s3://bucket/prefix or an absolute path")
    return prefix


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    secret_bytes(secret.get_secret_value())
    return secret


WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secret)]
Prefix = Annotated[str, AfterValidator(_check_prefix)]


class ApiKey(BaseModel):
    """Who may call, and for what. The key itself is known to its holder only.

    Attributes:
        key_hmac: Hex HMAC-SHA256 of the key under the pepper; `strucprune keys create --print-only`
            makes both.
        expires_at: With a UTC offset; None never expires.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant: Tenant
    key_hmac: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: frozenset[Scope] = ALL_SCOPES
    expires_at: AwareDatetime | None = None


class Settings(LimitSettings):
    """All settings. Each is the variable of its name, upper case, with prefix `STRUCPRUNE_`.

    Attributes:
        redis_url: The ledger's Redis or Valkey.
        broker_url: Celery's; the ledger's if None.
        state_uri: Prefix of the journal, `s3://bucket/prefix`.
        api_keys: JSON list of keys (`tenant`, `key_hmac`, `scopes`, `expires_at`), as `strucprune
            keys create --print-only` prints them, beside those that it keeps under `state_uri`.
        key_pepper: Secret that key hashes depend on.
        key_cache_seconds: For so long at most what `state_uri` says about a key is believed: how
            soon a revoked key is refused everywhere. 0 asks at every request.
        allowed_prefixes: JSON object, tenant -> URI prefixes its jobs may name. Once it names any
            tenant, a tenant without an entry may name nothing, as may one with an empty list.
            Empty (the default), every tenant may name every s3 URI that the service's own
            credentials reach.
        allow_local_files: Whether jobs may name local paths: only where all tenants are trusted.
        log_format: `text` for people, or `json`: one object a line, with job and trace id.
        limits: JSON object, what each tenant may have and do at once: `open_jobs`, `running_jobs`,
            `requests_per_second`, `request_burst`, `event_streams` (with waiting requests, of each
            API process; 1,000 by default); how large, long and urgent each of its jobs may be:
            `model_bytes` (of safetensors files), `scratch_bytes` (as estimated),
            `deadline_seconds` (which a job that names none gets), `max_priority`; and how much of
            it Redis keeps: `kept_jobs` (10,000 by default) and `kept_bytes` (128 MiB), beyond which
            the oldest jobs that are over go to the archive. No other limits by default. Workers
            need the same value for `running_jobs` to be kept.
        tenant_limits: JSON object, tenant -> limits that replace those above as a whole.
        retention_days: The reconciler removes jobs that have been over for this long, with their
            workspaces; what they published stays. `null` keeps all, for ever.
        webhook_secrets: JSON object, tenant -> `whsec_` and the base64 of 24 to 64 bytes: what its
            webhooks are signed with. A tenant without one has no webhooks.
        webhook_hosts: JSON list of the hosts that webhooks may go to, also with private addresses.
            Empty, any public address of the internet, and no other.
        webhook_allow_http: Whether they may go unencrypted: only inside a closed network.
        max_request_bytes: Larger request bodies are refused.
        event_streams: Event streams and waiting requests (`Prefer: wait`) that an API process holds
            open; a further stream is answered with 503, a further waiting request at once.
        max_connections: Connections that an API process takes at once.
        inspection_helpers: Processes of the API that look at the models of jobs, one job each at a
            time; a tenant gets all but one. Each takes some 90 MB, and may take 600 MB while a
            hostile model is looked at.
        api_host: Address that the API listens on.
        api_port: Port that it listens on.
        reconcile_every_seconds: How often the reconciler looks for jobs whose worker fell silent.
        requeue_after_seconds: Jobs queued this long are rung for again, and jobs that failed for
            now get their next attempt.
        rebuild_every_seconds: Time between comparisons of the whole journal with the ledger.
        heartbeat_file: Touched by the reconciler every few seconds: its age tells whether it is
            alive. (The API answers /healthz.)
    """

    model_config = CONFIG

    redis_url: RedisUrl
    broker_url: BrokerUrl = Field(default=None, repr=False)
    state_uri: Uri
    s3: S3 = Field(default_factory=S3Settings.from_environment)
    api_keys: tuple[ApiKey, ...] = ()
    key_pepper: SecretStr = Field(min_length=MIN_PEPPER_LENGTH)
    key_cache_seconds: float = Field(default=5.0, ge=0)
    allowed_prefixes: dict[Tenant, tuple[Prefix, ...]] = Field(default_factory=dict)
    allow_local_files: bool = False
    webhook_secrets: dict[Tenant, WebhookSecret] = Field(default_factory=dict, repr=False)
    webhook_hosts: tuple[str, ...] = ()
    webhook_allow_http: bool = False
    max_request_bytes: int = Field(default=256 * 1024, ge=1024)
    event_streams: int = Field(default=2000, ge=1)
    max_connections: int = Field(default=4000, ge=16)
    inspection_helpers: int = Field(default=HELPERS, ge=1, le=64)
    log_format: LogFormat = "text"
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8000, ge=1, le=65535)
    retention_days: float | None = Field(default=30.0, gt=0)
    reconcile_every_seconds: float = Field(default=5.0, gt=0)
    requeue_after_seconds: float = Field(default=60.0, gt=0)
    rebuild_every_seconds: float = Field(default=900.0, gt=0)
    heartbeat_file: Path | None = None

    @property
    def webhook_policy(self) -> Policy:
        """Where webhooks may go."""
        hosts = frozenset(host.lower().rstrip(".") for host in self.webhook_hosts)
        return Policy(hosts, self.webhook_allow_http)

    @property
    def celery_broker_url(self) -> str:
        """Where doorbells go."""
        return self.broker_url or self.redis_url
