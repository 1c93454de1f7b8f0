"""Configuration of the API and the reconciler, from environment variables `STRUCPRUNE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from api.allowed_hub import HUB_PATTERN
from api.inspection.inspectors import HELPERS
from api.jobs.environment import CONFIG, S3, BrokerUrl, RedisUrl
from api.jobs.limits import LimitSettings
from api.jobs.logs import LogFormat
from api.webhooks.targets import Policy
from strucprune_core.access.keys import MIN_PEPPER_LENGTH, USUAL_SCOPES, Scope, Tenant
from strucprune_core.client.webhooks import secret_bytes
from strucprune_core.spec import WritableUri
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.uri import parse_uri


def _check_prefix(prefix: str) -> str:
    location = parse_uri(prefix)
    # Also a mistyped scheme ("s3:/bucket") is a relative path.
    if location.scheme == "file" and not location.key.startswith("/"):
        raise ValueError("a prefix is s3://bucket/prefix or an absolute path")
    return prefix


def _check_hub_pattern(pattern: str) -> str:
    if not HUB_PATTERN.fullmatch(pattern):
        raise ValueError(
            "a pattern is org/name or datasets/org/name, where each part may hold a '*': org/*"
        )
    return pattern


def _check_webhook_secret(secret: SecretStr) -> SecretStr:
    secret_bytes(secret.get_secret_value())
    return secret


def _check_mlflow_uri(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("an MLflow server is http://host or https://host, with a port and a path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who logs in")
    return uri.rstrip("/")


WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secret)]
Prefix = Annotated[str, AfterValidator(_check_prefix)]
MlflowUri = Annotated[str, AfterValidator(_check_mlflow_uri)]
HubPattern = Annotated[str, AfterValidator(_check_hub_pattern)]


class ApiKey(BaseModel):
    """An API key: its tenant and scopes. The key itself is known to its holder only.

    Attributes:
        key_hmac: Hex HMAC-SHA256 of the key under the pepper; `strucprune keys create --print-only`
            makes both.
        expires_at: With a UTC offset; None never expires.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant: Tenant
    key_hmac: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: frozenset[Scope] = USUAL_SCOPES
    expires_at: AwareDatetime | None = None


class Settings(LimitSettings):
    """All settings. Each is read from the variable `STRUCPRUNE_` and its name in upper case.

    Attributes:
        redis_url: URL of the ledger's Redis or Valkey.
        broker_url: URL of Celery's broker; the ledger's if None.
        state_uri: Prefix of the journal, `s3://bucket/prefix`.
        api_keys: JSON list of keys (`tenant`, `key_hmac`, `scopes`, `expires_at`), as `strucprune
            keys create --print-only` prints them, beside those that it keeps under `state_uri`.
        key_pepper: Secret that key hashes depend on.
        key_cache_seconds: How long what `state_uri` says about a key is used. A revoked key is
            refused everywhere after this time. 0 asks at every request.
        allowed_prefixes: JSON object, tenant -> URI prefixes that its jobs may name. If it names
            any tenant, a tenant without an entry, or with an empty list, may name no URI. If it is
            empty (the default), every tenant may name every s3 URI that the service's own
            credentials reach.
        hub_repositories: JSON object, tenant -> patterns of the repositories of a Hugging Face hub
            that its jobs may read: `org/name`, `org/*`, `datasets/org/*`. A `*` stands for any
            part of one name; the tenant `*` for every tenant. Without a pattern, a tenant may read
            none. The service's own token (`HF_TOKEN`) opens private and gated repositories, so
            allow only those that the tenant may see. `HF_ENDPOINT` names another hub.
        allow_local_files: Whether jobs may name local paths. Only where all tenants are trusted.
        log_format: `text` for people, or `json`: one object a line, with job and trace id.
        limits: JSON object of limits for each tenant. What it may have and do at once: `open_jobs`,
            `running_jobs`, `requests_per_second`, `request_burst`, `event_streams` (with waiting
            requests, of each API process; 1,000 by default). What each of its jobs may take:
            `model_bytes` (of safetensors files), `scratch_bytes` (as estimated),
            `deadline_seconds` (which a job that names none gets), `max_priority`. What Redis keeps
            of it: `kept_jobs` (10,000 by default) and `kept_bytes` (128 MiB), beyond which its
            oldest ended jobs are archived. No other limits by default. Workers need the same value,
            since they enforce `running_jobs`.
        tenant_limits: JSON object, tenant -> limits that replace those above as a whole.
        gpu_memory_bytes: The `runtime.device_memory_bytes` of jobs that ask for `cuda` and name
            none; it becomes part of the job. Take what the smallest GPU of a worker has, less some
            4 GB for CUDA itself: the default is for 24 GiB. With `null` such jobs run in small
            pieces.
        task_downloads: Whether jobs may name tasks of lm-evaluation-harness, whose data workers
            then download from a Hugging Face hub (or read from its cache, with `HF_HUB_OFFLINE`).
            If not, jobs bring task files. API and workers need the same value.
        retention_days: The reconciler removes jobs that ended this long ago, with their workspaces.
            What they published stays. `null` keeps all jobs for ever.
        webhook_secrets: JSON object, tenant -> `whsec_` and the base64 of 24 to 64 bytes: the key
            that signs its webhooks. A tenant without one has no webhooks.
        webhook_hosts: JSON list of the hosts that webhooks may go to, also with private addresses.
            If it is empty, webhooks may go to any public address of the internet and no other.
        webhook_allow_http: Whether webhooks may go unencrypted. Only inside a closed network.
        mlflow_tracking_uri: An MLflow server (`https://mlflow.example.com`), to which the
            reconciler logs how jobs succeeded or failed. None logs nowhere. MLflow's own variables
            say who logs in: `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and
            `MLFLOW_TRACKING_PASSWORD`; `MLFLOW_TRACKING_SERVER_CERT_PATH` names its authority.
        mlflow_experiment: Its experiment, in which `{tenant}` stands for the job's tenant.
        worker_prices: JSON object, class of workers (its pool) -> what an hour of such a worker
            costs. Users then see a range of costs before they submit a job. Without an entry no
            cost is shown.
        currency: What prices are in, as users see it: `EUR`.
        max_request_bytes: Larger request bodies are refused.
        event_streams: Event streams and waiting requests (`Prefer: wait`) that an API process holds
            open. A further stream is answered with 503, a further waiting request without waiting.
        max_connections: Connections that an API process accepts at once.
        inspection_helpers: Processes of the API that check the models of jobs, each one job at a
            time. A tenant gets all but one. Each takes some 90 MB, and up to 600 MB for a hostile
            model.
        api_host: Address that the API listens on.
        api_port: Port that it listens on.
        reconcile_every_seconds: How often the reconciler looks for jobs whose lease has expired.
        requeue_after_seconds: For jobs queued this long the reconciler rings the doorbell again.
            Jobs that rest after a failure get their next attempt after this time.
        rebuild_every_seconds: Time between comparisons of the whole journal with the ledger.
        heartbeat_file: Touched by the reconciler every few seconds: its age shows whether it is
            alive. (The API answers /healthz.)
    """

    model_config = CONFIG

    redis_url: RedisUrl
    broker_url: BrokerUrl = Field(default=None, repr=False)
    state_uri: WritableUri
    s3: S3 = Field(default_factory=S3Settings.from_environment)
    api_keys: tuple[ApiKey, ...] = ()
    key_pepper: SecretStr = Field(min_length=MIN_PEPPER_LENGTH)
    key_cache_seconds: float = Field(default=5.0, ge=0)
    allowed_prefixes: dict[Tenant, tuple[Prefix, ...]] = Field(default_factory=dict)
    hub_repositories: dict[Tenant | Literal["*"], tuple[HubPattern, ...]] = Field(
        default_factory=dict
    )
    allow_local_files: bool = False
    gpu_memory_bytes: int | None = Field(default=20 * 2**30, ge=2**20)
    webhook_secrets: dict[Tenant, WebhookSecret] = Field(default_factory=dict, repr=False)
    webhook_hosts: tuple[str, ...] = ()
    webhook_allow_http: bool = False
    mlflow_tracking_uri: MlflowUri | None = None
    mlflow_experiment: str = Field(default="strucprune/{tenant}", min_length=1, max_length=400)
    worker_prices: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    currency: str = Field(default="", max_length=20)
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
