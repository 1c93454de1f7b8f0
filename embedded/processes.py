"""Child processes with a log file, a readiness check and an orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from worker import die_with_parent as tether

# Long enough for a cold start on a busy two-core machine.
READY_SECONDS = 60.0
# How often a readiness check is repeated.
_POLL_SECONDS = 0.05
# SIGTERM to SIGKILL.
_GRACE_SECONDS = 10.0
# How much of a log an error message shows.
_TAIL_LINES = 30
# Of TCP: a companion port at a fixed distance above may not exist.
_HIGHEST_PORT = 65535


class ProcessError(RuntimeError):
    """A child process ended or did not become ready; the message shows its log's last lines."""


def free_ports(count: int, *, companion: int = 0) -> list[int]:
    """Loopback ports that nothing listens on right now.

    Args:
        count: How many.
        companion: If not 0, `port + companion` is free too, for servers that derive a second port.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            first = _bind(0)
            held.append(first)
            port = int(first.getsockname()[1])
            if companion == 0:
                ports.append(port)
                continue
            if port + companion > _HIGHEST_PORT:
                port -= companion
                second = _try_bind(port)
            else:
                second = _try_bind(port + companion)
            if second is not None:
                held.append(second)
                ports.append(port)
    finally:
        for listener in held:
            listener.close()
    return ports


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    return listener


def _try_bind(port: int) -> socket.socket | None:
    try:
        return _bind(port)
    except OSError:
        return None


def accepts_connections(port: int) -> bool:
    """True if something listens on this loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def wait_until(
    ready: Callable[[], bool],
    what: str,
    *,
    timeout_seconds: float = READY_SECONDS,
    interval_seconds: float = _POLL_SECONDS,
) -> None:
    """Wait until `ready()` is true.

    Raises:
        TimeoutError: it was not true in time; the message names `what`.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_seconds:.0f} s.")
        time.sleep(interval_seconds)


class ManagedProcess:
    """A child in a process group of its own, logging to a file, that dies with this process.

    Args:
        name: What to call it in messages and as its log's name.
        argv: Program and arguments.
        log_directory: Receives `<name>.log`, appended to.
        env: The whole environment; None inherits this process's.
        cwd: Working directory.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_directory: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_directory / f"{name}.log"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                tether.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._process.poll() is None

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of the log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def wait_ready(self, ready: Callable[[], bool], timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until `ready()`.

        Raises:
            ProcessError: the process ended first, or the time was up.
        """

        def ended_or_ready() -> bool:
            return not self.running or ready()

        try:
            wait_until(ended_or_ready, f"{self.name} is ready", timeout_seconds=timeout_seconds)
        except TimeoutError as late:
            self.stop()
            raise self._failure(str(late)) from late
        if not self.running:
            raise self._failure(f"{self.name} ended with status {self._process.returncode}.")

    def _failure(self, message: str) -> ProcessError:
        return ProcessError(f"{message} Last lines of {self.log_path}:\n{self.log_tail()}")

    def terminate(self) -> None:
        """SIGTERM to the process, without waiting for its end."""
        self._process.terminate()

    def stop(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """SIGTERM to the process, then SIGKILL to its whole group once the grace period is over."""
        if self.running:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole process group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


class Service(ABC):
    """Something with a start and a stop, as a context manager."""

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it, also after a start that failed halfway; no error if it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Server(Service):
    """A service of one process, which `start` leaves in `_process`; its data stays on disk."""

    _process: ManagedProcess | None = None

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings it back on the same port with its data."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Stop the server; its data stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None
