"""A TCP proxy that breaks connections when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading


class FlakyProxy:
    """Forwards a loopback port to another one. A context manager.

    Args:
        port: The port behind.

    Attributes:
        down: While true, connections are broken at once, those that exist too.
        port: The port before.
        connections: How many were made.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.down = False
        self._cuts: list[int] = []
        self._heads = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def cut(self, *after_bytes: int) -> None:
        """Break the next connections that answer, each after so many bytes of its answers."""
        with self._lock:
            self._cuts += after_bytes

    def keep_bodies(self, requests: int) -> None:
        """Of the next so many PUT requests pass the head on, then break the connection."""
        with self._lock:
            self._heads = requests

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self.down:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self._behind))
            except OSError:
                client.close()
                continue
            for work, pair in ((self._ask, (client, server)), (self._answer, (server, client))):
                threading.Thread(target=work, args=pair, daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                with self._lock:
                    keep_body = self._heads > 0 and data.startswith(b"PUT ")
                    self._heads -= keep_body
                if keep_body:
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(data[: data.index(b"\r\n\r\n") + 4])
                    break
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        left: int | None = None
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                with self._lock:
                    if left is None and self._cuts:
                        left = self._cuts.pop(0)
                if left is not None:
                    data, left = data[:left], left - len(data)
                if data and not self.down:
                    client.sendall(data)
                if self.down or (left is not None and left <= 0):
                    break
        for end in (server, client):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
