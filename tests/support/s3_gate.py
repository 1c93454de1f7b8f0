"""A gate before a real S3 server that breaks or refuses requests when it is told to.

It stands in for what the server of the tests does not do: session tokens that expire (a request
whose token is not one of `tokens` is answered as AWS answers), bursts of 503 SlowDown, answers that
trickle, break off or never come. All else it passes on, signed again with the server's own keys.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from embedded.s3 import REGION, S3Server

Act = Literal["slow down", "trickle", "cut answer", "cut request", "silence"]
TOKEN = "x-amz-security-token"
# Made anew by signing, or of the connection.
_OWN = {
    TOKEN,
    "authorization",
    "x-amz-date",
    "x-amz-content-sha256",
    "host",
    "connection",
    "expect",
}


@dataclass
class Fault:
    """What is to happen to some requests.

    Attributes:
        method: Of the request.
        within: A part of its path and query.
        act: What happens.
        times: To how many more requests.
        met: How many it has happened to.
    """

    method: str
    within: str
    act: Act
    times: int = 1
    met: int = 0


class S3Gate:
    """The gate; `opened` starts one.

    Attributes:
        tokens: Session tokens that are valid now; None lets everybody in.
        faults: What is to happen to requests, each to the first that it fits.
    """

    def __init__(self, server: S3Server) -> None:
        self.tokens: set[str] | None = None
        self.faults: list[Fault] = []
        self.refused = 0
        self.closing = threading.Event()
        self._server = server
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        # What hangs is let go, not waited for.
        self._http.block_on_close = False

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def break_next(self, method: str, within: str, act: Act, times: int = 1) -> Fault:
        """Let something happen to the next such requests."""
        fault = Fault(method, within, act, times)
        with self._lock:
            self.faults.append(fault)
        return fault

    def fault_of(self, method: str, path: str) -> Act | None:
        """What is to happen to a request."""
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.within in path:
                    fault.times -= 1
                    fault.met += 1
                    return fault.act
        return None

    def ask(self, method: str, path: str, headers: Any, body: bytes) -> Any:
        """The server's answer, and its bytes."""
        kept = {name: value for name, value in headers.items() if name.lower() not in _OWN}
        request = AWSRequest(method, self._server.endpoint_url + path, kept, body)
        keys = Credentials(self._server.access_key_id, self._server.secret_access_key)
        S3SigV4Auth(keys, "s3", REGION).add_auth(request)
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(request.headers.items()))
            answer = connection.getresponse()
            return answer, answer.read()

    @contextmanager
    def opened(self) -> Iterator[S3Gate]:
        """Serve until the context ends."""
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def _handler(gate: S3Gate) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            act = gate.fault_of(self.command, self.path)
            length = int(self.headers.get("Content-Length", 0))
            if act == "cut request":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if gate.tokens is not None and self.headers.get(TOKEN) not in gate.tokens:
                gate.refused += 1
                self.refuse(400, "ExpiredToken")
            elif act == "slow down":
                self.refuse(503, "SlowDown")
            elif act == "silence":
                gate.closing.wait(60)
                self.close_connection = True
            else:
                self.pass_on(act, body)

        def pass_on(self, act: Act | None, body: bytes) -> None:
            answer, data = gate.ask(self.command, self.path, self.headers, body)
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "connection",
                    "transfer-encoding",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(size or 0))
            self.end_headers()
            if self.command == "HEAD":
                return
            if act == "trickle":
                self.trickle(data)
            elif act == "cut answer":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)

        def trickle(self, data: bytes) -> None:
            for byte in data:
                if gate.closing.is_set():
                    break
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            data = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client gave up, as it should
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815

    return Handler
