"""A Docker engine for one check: dockerd in namespaces of its own. No other engine is needed.

Its bridges, firewall rules and published ports are in a network namespace without a way out. So
nothing on this machine changes, and no port is taken.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from embedded.processes import ManagedProcess, Server

_VARIABLE = "STRUCPRUNE_OWN_NAMESPACES"


def in_own_namespaces() -> bool:
    """True in the process that `enter_namespaces` has begun."""
    return os.environ.get(_VARIABLE) == "1"


def enter_namespaces(module: str) -> NoReturn:
    """Run a module again, with the same arguments, in new network and mount namespaces.

    Args:
        module: The module that calls this, as `python -m` names it.
    """
    os.environ[_VARIABLE] = "1"
    module_command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--net", "--mount", *module_command])


class Engine(Server):
    """One dockerd, with its data in a directory; it needs root.

    Args:
        directory: Everything of its own; created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "socket"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the command `docker` talks to this engine."""
        return {**os.environ, "DOCKER_HOST": f"unix://{self._socket}"}

    def docker(self, *arguments: str) -> str:
        """Run `docker`; what it printed.

        Raises:
            subprocess.CalledProcessError: it failed, after saying why on stderr.
        """
        done = subprocess.run(
            ["docker", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        return done.stdout.strip()

    def start(self) -> None:
        """Start it and wait until it answers."""
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        places = [f"--data-root={self._directory}/data", f"--exec-root={self._directory}/exec"]
        places += [f"--pidfile={self._directory}/pid", f"--host=unix://{self._socket}"]
        self._process = ManagedProcess(
            "dockerd", ["dockerd", *places], log_directory=self._directory
        )
        self._process.wait_ready(self._answers)

    def _answers(self) -> bool:
        command = ["docker", "version"]
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return done.returncode == 0
