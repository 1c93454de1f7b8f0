"""A real MLflow server on loopback, with its runs in SQLite and its artifacts in a directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx

from embedded.processes import ManagedProcess, Server, free_ports


class MlflowServerProcess(Server):
    """One server process.

    Args:
        directory: Database, artifacts and log.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_ports(1)[0]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        # Not `mlflow` itself, which needs an older pyarrow: the same server is in `mlflow-skinny`.
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self._directory}/runs.sqlite"),
            *("--artifacts-destination", str(self._directory / "artifacts")),
        ]
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # As older servers do, so that it can be tested that ours is not sent elsewhere.
            "MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES": "mlflow-artifacts",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "HOME": str(self._directory),
        }
        self._process = ManagedProcess(
            "mlflow",
            command,
            log_directory=self._directory,
            env=environment,
            cwd=self._directory,
        )
        self._process.wait_ready(self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False
