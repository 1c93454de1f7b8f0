"""Configuration of the worker, from environment variables `STRUCPRUNE_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from api.jobs.environment import CONFIG, S3, BrokerUrl, RedisUrl
from api.jobs.limits import LimitSettings
from api.jobs.logs import LogFormat
from strucprune_core.spec import WritableUri
from strucprune_core.storage.s3_settings import S3Settings


class Settings(LimitSettings):
    """All settings. Each is read from the variable `STRUCPRUNE_` and its name in upper case.

    Attributes:
        redis_url: URL of the ledger's Redis or Valkey.
        broker_url: URL of Celery's broker; the ledger's if None.
        state_uri: Prefix of the journal, `s3://bucket/prefix`.
        lease_seconds: A worker that does not renew its lease or seat for this long loses it, and
            another worker may take its place.
        heartbeat_seconds: How often a lease is renewed.
        progress_seconds: Progress is reported early, between heartbeats, but at most this often.
        signal_seconds: How often a worker checks whether its job is to stop, and sends its log
            lines.
        cancel_grace_seconds: Time from the request to a cancelled solve to stop until it is
            killed. A cancelled job has nothing to save, so this need not cover a safe point.
        grace_seconds: Time from the request to a solve to stop until it is killed. Whatever stops
            workers (a pod's termination grace period) must wait longer.
        stall_seconds: A solve that reports nothing for this long is considered hung and killed.
        scratch_directory: Directory for the temporary files of jobs; the system's if None. A worker
            that starts removes what crashed workers left there.
        scratch_bytes: Most bytes that temporary files may take; all free space if None. Set it
            where the file system shows more space than may be used, as a Kubernetes `emptyDir`
            with a `sizeLimit` does.
        heartbeat_file: Touched every few seconds: its age shows whether the worker is alive.
        drain_file: Once it exists, the worker gives its job back at the next safe point and ends,
            as after SIGTERM. A worker that starts removes it.
        pool: Name of the group of workers that this one belongs to, a class of GPU for instance.
            `GET /v1/workers` shows it.
        log_format: `text` for people, or `json`: one object a line, with job and trace id.
        limits: JSON object as for the API, of which workers enforce `running_jobs`.
        tenant_limits: JSON object as for the API.
        task_downloads: Whether jobs may name tasks of lm-evaluation-harness, whose data workers
            then download from a Hugging Face hub (or read from its cache, with `HF_HUB_OFFLINE`).
            If not, jobs bring task files. API and workers need the same value.
    """

    model_config = CONFIG

    redis_url: RedisUrl
    broker_url: BrokerUrl = Field(default=None, repr=False)
    state_uri: WritableUri
    s3: S3 = Field(default_factory=S3Settings.from_environment)
    lease_seconds: float = Field(default=60.0, gt=0)
    heartbeat_seconds: float = Field(default=15.0, gt=0)
    progress_seconds: float = Field(default=1.0, gt=0)
    signal_seconds: float = Field(default=1.0, gt=0)
    cancel_grace_seconds: float = Field(default=5.0, gt=0)
    grace_seconds: float = Field(default=60.0, gt=0)
    stall_seconds: float = Field(default=1800.0, gt=0)
    scratch_directory: Path | None = None
    scratch_bytes: int | None = Field(default=None, gt=0)
    heartbeat_file: Path | None = None
    drain_file: Path | None = None
    pool: str = ""
    log_format: LogFormat = "text"

    @model_validator(mode="after")
    def _beats_fit_in_a_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "heartbeat_seconds must be at most half of lease_seconds: one lost heartbeat "
                "would lose the job"
            )
        return self

    @property
    def celery_broker_url(self) -> str:
        """Where doorbells come from."""
        return self.broker_url or self.redis_url
