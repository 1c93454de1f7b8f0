"""The whole product on this machine: Valkey, S3, API, reconciler and workers, on loopback."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from embedded.processes import ManagedProcess, Service, free_ports
from embedded.s3 import REGION, S3Server
from embedded.valkey import ValkeyServer
from strucprune_core.access.keys import hash_key, new_key
from strucprune_core.client import StrucPruneClient

ROOT = Path(__file__).resolve().parent.parent
TENANT = "demo"
# Bucket of the service's own state, and the one that jobs read from and write to.
STATE_BUCKET = "strucprune-state"
WORK_BUCKET = "work"
# Longer than a solve's grace period (10 s below): a worker gives its job back before it goes.
_WORKER_STOP_SECONDS = 20.0


class Stack(Service):
    """All processes together.

    Args:
        directory: Data and logs; created if missing.
        workers: Worker processes; each runs one job at a time.
        settings: More `STRUCPRUNE_*` variables for API, reconciler and workers.
        api_port: Loopback port of the API; None picks a free one.
        tenants: Besides the one that `api_key` is of.

    Attributes:
        api_keys: Tenant -> its key.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 1,
        settings: Mapping[str, str] | None = None,
        api_port: int | None = None,
        tenants: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._worker_count = workers
        self._settings = dict(settings or {})
        self._pepper = secrets.token_urlsafe(24)
        self.api_keys = {tenant: new_key(self._pepper) for tenant in (TENANT, *tenants)}
        self.api_key = self.api_keys[TENANT]
        self._api_port = free_ports(1)[0] if api_port is None else api_port
        self.valkey = ValkeyServer(directory / "valkey")
        self.s3 = S3Server(directory / "s3")
        self.api: ManagedProcess | None = None
        self.reconciler: ManagedProcess | None = None
        self.workers: list[ManagedProcess] = []

    @property
    def api_url(self) -> str:
        """Base URL of the REST API."""
        return f"http://127.0.0.1:{self._api_port}"

    @property
    def log_directory(self) -> Path:
        """Where API, reconciler and workers log."""
        return self._directory / "logs"

    @property
    def environment(self) -> dict[str, str]:
        """The configuration of API, reconciler and workers."""
        keys = [
            {"tenant": tenant, "key_hmac": hash_key(key, self._pepper)}
            for tenant, key in self.api_keys.items()
        ]
        return {
            "STRUCPRUNE_REDIS_URL": self.valkey.url,
            "STRUCPRUNE_STATE_URI": f"s3://{STATE_BUCKET}/state",
            "STRUCPRUNE_API_KEYS": json.dumps(keys),
            "STRUCPRUNE_KEY_PEPPER": self._pepper,
            "STRUCPRUNE_API_HOST": "127.0.0.1",
            "STRUCPRUNE_API_PORT": str(self._api_port),
            "STRUCPRUNE_S3_ENDPOINT_URL": self.s3.endpoint_url,
            "STRUCPRUNE_S3_REGION": REGION,
            "STRUCPRUNE_S3_ACCESS_KEY_ID": self.s3.access_key_id,
            "STRUCPRUNE_S3_SECRET_ACCESS_KEY": self.s3.secret_access_key,
            "STRUCPRUNE_GRACE_SECONDS": "10",
            **self._settings,
        }

    def environment_of(self, name: str) -> dict[str, str]:
        """The whole environment of one process, by its name: api, reconciler, worker-0, ..."""
        return {**os.environ, **self.environment}

    def client(self) -> StrucPruneClient:
        """The product's own client, with the API key."""
        return StrucPruneClient(self.api_url, self.api_key)

    def http(self) -> httpx.Client:
        """A plain HTTP client of the API, with the API key."""
        return httpx.Client(
            base_url=self.api_url,
            headers={"Authorization": f"Bearer {self.api_key}"},
            timeout=90.0,
        )

    def start(self) -> None:
        """Start everything and wait until the API is ready."""
        self.log_directory.mkdir(parents=True, exist_ok=True)
        self.valkey.start()
        self.s3.start()
        for bucket in (STATE_BUCKET, WORK_BUCKET):
            self.s3.create_bucket(bucket)
        self.api = self._module("api", "api")
        self.reconciler = self._module("reconciler", "api.reconciler")
        for _ in range(self._worker_count):
            self.start_worker()
        self.api.wait_ready(self._api_is_ready)
        for worker in self.workers:
            worker.wait_ready(lambda worker=worker: " ready." in worker.log_tail())  # type: ignore[misc]

    def start_worker(self) -> ManagedProcess:
        """Start one more worker; returns before it is ready."""
        worker = self._module(f"worker-{len(self.workers)}", "worker")
        self.workers.append(worker)
        return worker

    def _module(self, name: str, module: str, *arguments: str) -> ManagedProcess:
        return ManagedProcess(
            name,
            [sys.executable, "-m", module, *arguments],
            log_directory=self.log_directory,
            env=self.environment_of(name),
            cwd=ROOT,
        )

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.api_url}/readyz", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Stop in the order in which nobody misses anybody: workers first, storage last."""
        for worker in self.workers:
            worker.stop(_WORKER_STOP_SECONDS)
        for process in (self.reconciler, self.api):
            if process is not None:
                process.stop()
        self.s3.stop()
        self.valkey.stop()
