"""Webhooks, told to a real receiver on loopback; and where they must not go."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api import submission
from api.jobs.rebuild import restore
from api.jobs.record import Claim
from api.jobs.state import JobState
from api.request import Notifications
from api.services import Services
from api.settings import Settings
from api.webhooks.delivery import NotDelivered, WebhookClient
from api.webhooks.dispatcher import Dispatcher, run
from api.webhooks.lanes import AT_ONCE, FAILURES, PER_TENANT, Breakers, Lanes
from api.webhooks.outbox import Subscription
from api.webhooks.targets import Policy, WebhookNotAllowed, addresses, is_public, parse_target
from strucprune_core.client.webhooks import InvalidSignature, sign, verify
from strucprune_core.spec import JobSpec
from tests.support.claims import claim_job
from tests.support.routes import JOBS, elsewhere, submit

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
OTHER = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
LOCAL = Policy(frozenset({"127.0.0.1", "hooks.test"}), allow_http=True)


@dataclass
class Receiver:
    """What came, and what is answered: a status for each request, then 204."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    behave: Callable[[BaseHTTPRequestHandler], None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?x=1"

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.paths.append(self.path)
            found.requests.append((dict(self.headers), body))
            if found.behave is not None:
                found.behave(self)
                return
            self.send_response(found.answers.pop(0) if found.answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


# A name is a reason of its own to be refused; what it is about stands first.
HOSTILE = {
    "not encrypted": "http://example.com/",
    "another scheme": "ftp://example.com/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://example.com:6379/_FLUSHALL",
    "no scheme": "//example.com/",
    "no host": "https:///x",
    "nothing": "https://",
    "loopback": "https://127.0.0.1/",
    "loopback, other": "https://127.8.8.8/",
    "loopback, name": "https://localhost/",
    "loopback, short": "https://127.1/",
    "loopback, decimal": "https://2130706433/",
    "loopback, hexadecimal": "https://0x7f000001/",
    "loopback, octal": "https://0177.0.0.1/",
    "loopback, octal with a dot": "https://0177.0.0.1./",
    "loopback, v6": "https://[::1]/",
    "loopback, mapped": "https://[::ffff:127.0.0.1]/",
    "loopback, mapped, hexadecimal": "https://[::ffff:7f00:1]/",
    "loopback, 6to4": "https://[2002:7f00:1::]/",
    "loopback, NAT64": "https://[64:ff9b::7f00:1]/",
    "any address": "https://0.0.0.0/",
    "any address, v6": "https://[::]/",
    "metadata of clouds": "https://169.254.169.254/latest/meta-data/",
    "metadata, v6": "https://[fd00:ec2::254]/",
    "metadata, mapped": "https://[::ffff:169.254.169.254]/",
    "metadata, translated": "https://[::ffff:0:a9fe:a9fe]/",
    "metadata, compatible": "https://[::a9fe:a9fe]/",
    "metadata, NAT64": "https://[64:ff9b::a9fe:a9fe]/",
    "metadata, NAT64 of a local network": "https://[64:ff9b:1::a9fe:a9fe]/",
    "metadata, 6to4": "https://[2002:a9fe:a9fe::1]/",
    "metadata, Teredo": "https://[2001:0:a9fe:a9fe::1]/",
    "metadata of Alibaba": "https://100.100.100.200/latest/",
    "metadata of Oracle": "https://192.0.0.192/",
    "platform of Azure": "https://168.63.129.16/machine/",
    "platform of Azure, mapped": "https://[::ffff:168.63.129.16]/",
    "platform of Azure, NAT64": "https://[64:ff9b::a83f:8110]/",
    "platform of Azure, 6to4": "https://[2002:a83f:8110::]/",
    "services of IBM": "https://161.26.0.10/",
    "relay of 6to4": "https://192.88.99.1/",
    "site-local": "https://[fec0::1]/",
    "site-local, last": "https://[feff:ffff::1]/",
    "segment routing": "https://[5f00::1]/",
    "documentation, v6": "https://[2001:db8::1]/",
    "documentation, v6, new": "https://[3fff::1]/",
    "discarded": "https://[100::1]/",
    "benchmarks": "https://198.18.0.1/",
    "reserved": "https://240.0.0.1/",
    "private, ten": "https://10.0.0.1/",
    "private, 172": "https://172.16.0.1/",
    "private, 192": "https://192.168.1.1/",
    "shared": "https://100.64.0.1/",
    "link-local, v6": "https://[fe80::1]/",
    "link-local with a zone": "https://[fe80::1%25eth0]/",
    "multicast": "https://224.0.0.1/",
    "broadcast": "https://255.255.255.255/",
    "documentation": "https://192.0.2.1/",
    "a name of the local network": "https://redis/",
    "user information": "https://example.com@10.0.0.1/",
    "user information, harmless host": "https://user:s3cret@example.com/",
    "fragment": "https://example.com/#x",
    "backslash": "https://example.com\\@10.0.0.1/",
    "space": "https://exa mple.com/",
    "line end": "https://example.com/\r\nHost: x",
    "tab": "https://exa\tmple.com/",
    "NUL": "https://example.com\0.evil/",
    "full-width digits": "https://１２７.0.0.1/",
    "circled digits": "https://①②⑦.⓪.⓪.①/",
    "port of nobody": "https://example.com:0/",
    "port too high": "https://example.com:65536/",
    "port in words": "https://example.com:http/",
    "bracket open": "https://[::1/",
    "too long": "https://example.com/" + "x" * 3000,
}


@pytest.mark.parametrize("url", HOSTILE.values(), ids=HOSTILE)
def test_urls_that_lead_where_none_may_go(url: str) -> None:
    with pytest.raises(WebhookNotAllowed) as caught:
        parse_target(url, Policy())
    assert caught.value.remedy
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("https://Example.COM.:8443/a/b?c=d", "example.com", 8443, "/a/b?c=d"),
        ("https://xn--bcher-kva.example/x", "xn--bcher-kva.example", 443, "/x"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
        ("https://[2606:4700::1111]/", "2606:4700::1111", 443, "/"),
    ],
)
def test_urls_that_are_fine(url: str, host: str, port: int, path: str) -> None:
    target = parse_target(url, Policy())
    assert (target.secure, target.host, target.port, target.path) == (True, host, port, path)


def test_a_list_of_hosts_is_all_there_is() -> None:
    policy = Policy(frozenset({"hooks.internal"}))
    assert parse_target("https://hooks.internal/x", policy).host == "hooks.internal"
    for other in ("https://example.com/", "https://a.hooks.internal/", "https://hooks.internal.x/"):
        with pytest.raises(WebhookNotAllowed):
            parse_target(other, policy)


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1"])
def test_a_public_name_with_a_private_address(bad: str) -> None:
    """One among good ones is enough."""
    target = parse_target("https://rebind.example/", Policy())
    with pytest.raises(WebhookNotAllowed):
        addresses(target, Policy(), lambda host, port: ["8.8.8.8", bad])


def test_public_addresses() -> None:
    for text in (
        *("8.8.8.8", "1.1.1.1", "168.63.129.17", "192.88.98.1"),
        *("2606:4700::1111", "2001:4860:4860::8888", "2a00::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ):
        assert is_public(ipaddress.ip_address(text)), text


def test_a_name_is_resolved_once_and_its_address_used(receiver: Receiver) -> None:
    """A second answer of the resolver, the attacker's real one, is never asked for."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["192.0.2.1"]

    sender = WebhookClient(LOCAL, resolve=resolve)
    sender.post(f"http://hooks.test:{receiver.port}/x", {"A": "b"}, b"{}")
    assert asked == ["hooks.test"]
    ((headers, body),) = receiver.requests
    assert (headers["Host"], headers["A"], body) == (f"hooks.test:{receiver.port}", "b", b"{}")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of hooks.test, with its key, that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "hooks.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test"),
            *("-keyout", str(path), "-out", str(tmp_path / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a", encoding="utf-8") as file:
        file.write((tmp_path / "certificate.pem").read_text(encoding="utf-8"))
    return path


def test_tls_is_checked_against_the_name(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that trust nobody hang up."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    port = server.server_address[1]
    trusting = ssl.create_default_context(cafile=str(certificate))
    policy = Policy(frozenset({"hooks.test", "other.test"}))
    try:
        sender = WebhookClient(policy, tls=trusting, resolve=lambda host, port: ["127.0.0.1"])
        sender.post(f"https://hooks.test:{port}/", {}, b"sealed")
        with pytest.raises(NotDelivered):
            sender.post(f"https://other.test:{port}/", {}, b"another name")
        with pytest.raises(NotDelivered):
            WebhookClient(policy, resolve=sender.resolve).post(
                f"https://hooks.test:{port}/", {}, b"an unknown authority"
            )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert got == [b"sealed"]


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
        handler.end_headers()

    receiver.behave = redirect
    with pytest.raises(NotDelivered, match="307"):
        WebhookClient(LOCAL).post(receiver.url, {}, b"{}")
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_receiver_that_trickles_is_left(receiver: Receiver, part: str) -> None:
    """A byte now and then would hold a socket's own timeout off for ever."""

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        try:
            for _ in range(600):
                handler.wfile.write(b"H" if part == "headers" else b".")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            return

    receiver.behave = trickle
    began = time.monotonic()
    with contextlib.suppress(NotDelivered):
        WebhookClient(LOCAL, timeout_seconds=0.5).post(receiver.url, {}, b"{}")
    assert time.monotonic() - began < 15.0  # half of what it would last


def test_an_endless_answer_is_not_read(receiver: Receiver) -> None:
    written = [0]

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        try:
            while written[0] < 1 << 30:
                written[0] += handler.wfile.write(b"x" * 65536)
        except OSError:
            return

    receiver.behave = endless
    WebhookClient(LOCAL).post(receiver.url, {}, b"{}")
    time.sleep(0.1)
    assert written[0] < 64 << 20


def test_signatures() -> None:
    now = int(time.time())
    headers = {
        "Webhook-Id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,AAAA {sign(SECRET, 'msg_1', now, b'body')}",
    }
    assert verify(SECRET, headers, b"body") == "msg_1"
    for change in (
        {"Webhook-Id": "msg_2"},
        {"webhook-timestamp": str(now + 1)},
        {"webhook-timestamp": "now"},
        {"webhook-signature": sign(OTHER, "msg_1", now, b"body")},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,\xff"},
    ):
        with pytest.raises(InvalidSignature):
            verify(SECRET, {**headers, **change}, b"body")
    with pytest.raises(InvalidSignature):
        verify(SECRET, headers, b"another body")
    old = {
        **headers,
        "webhook-timestamp": str(now - 400),
        "webhook-signature": sign(SECRET, "msg_1", now - 400, b"body"),
    }
    with pytest.raises(InvalidSignature, match="too long ago"):
        verify(SECRET, old, b"body")
    assert verify(SECRET, old, b"body", tolerance_seconds=1000)
    # The example of the specification (standard-webhooks, 1.0.0).
    example = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert example == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.fixture
def settings(settings: Settings) -> Settings:
    more = {
        "webhook_secrets": {"acme": SecretStr(SECRET), "rival": SecretStr(OTHER)},
        "webhook_hosts": ("127.0.0.1",),
        "webhook_allow_http": True,
    }
    return settings.model_copy(update=more)


@pytest.fixture
def dispatcher(services: Services) -> Dispatcher:
    return _dispatcher(services)


def _dispatcher(
    services: Services, timeout_seconds: float = 2, breakers: Breakers | None = None
) -> Dispatcher:
    return Dispatcher(
        services.outbox,
        services.ledger,
        WebhookClient(services.settings.webhook_policy, timeout_seconds=timeout_seconds),
        services.settings.webhook_secrets,
        first_retry_seconds=0.05,
        breakers=breakers,
    )


def until(dispatcher: Dispatcher, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        dispatcher.step()
        time.sleep(0.02)


def waiting(services: Services) -> list[str]:
    """Jobs of which something is still to be told, soon or later."""
    return services.outbox.due(time.time() + 1e6, 10)


def wishing(body: dict[str, Any], receiver: Receiver, *events: str) -> dict[str, Any]:
    notifications: dict[str, Any] = {"webhook_url": receiver.url}
    if events:
        notifications["events"] = events
    return {**body, "notifications": notifications}


def test_a_job_is_told_about(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
) -> None:
    named = {**body, "name": "nightly"}
    job = submit(client, wishing(named, receiver, "job.running", "job.succeeded"))
    assert "notifications" not in job["spec"]
    dispatcher.step()
    assert receiver.requests == []
    claim = claim_job(services.ledger, job["id"], "w", 60)
    assert isinstance(claim, Claim)
    services.ledger.heartbeat(job["id"], claim.fence, 60, {"phase": "solving"})
    dispatcher.step()  # at once: the change of state has woken it
    services.ledger.finish(job["id"], claim.fence, JobState.SUCCEEDED)
    dispatcher.step()
    dispatcher.step()
    assert [message["type"] for message in receiver.messages] == ["job.running", "job.succeeded"]
    assert receiver.messages[1]["data"] == {
        "job_id": job["id"],
        "title": "Succeeded; the result is published",
        "state": "succeeded",
        "run": 1,
        "attempt": 1,
        "error": None,
        "name": "nightly",
        "labels": {"team": "nlp"},
    }
    ids = [verify(SECRET, headers, sent) for headers, sent in receiver.requests]
    assert len(set(ids)) == 2
    assert waiting(services) == []


def test_a_chat_is_told_in_its_own_format(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
) -> None:
    """What is around the body is the same: signature, order, retries."""
    receiver.answers = [500]
    wish = wishing(body, receiver, "job.running", "job.failed")
    wish["notifications"]["format"] = "slack"
    job = submit(client, wish)
    claim = claim_job(services.ledger, job["id"], "w", 60)
    assert isinstance(claim, Claim)
    error = {"code": "x", "message": "It failed <!channel>.", "remedy": "Ask for less."}
    services.ledger.finish(job["id"], claim.fence, JobState.FAILED, error=error)
    until(dispatcher, lambda: len(receiver.requests) == 3)
    model = Path(body["model"]["uri"]).name
    about = f"`{model}` (sparsity 0.25)"
    assert receiver.messages == [
        *[{"text": f"{about}: running. {job['id']}"}] * 2,
        {
            "text": f"{about}: failed. `It failed &lt;!channel&gt;.` `Ask for less.` {job['id']}",
        },
    ]
    ids = [verify(SECRET, headers, sent) for headers, sent in receiver.requests]
    assert ids[0] == ids[1] != ids[2]


def test_requests_of_versions_without_formats_keep_their_fingerprint(body: dict[str, Any]) -> None:
    """So that they are replayed, not refused."""
    spec, url = JobSpec.model_validate(body), "https://example.com/"
    plain = Notifications(webhook_url=url)
    assert set(plain.fingerprinted()) == {"webhook_url", "events"}
    slack = Notifications(webhook_url=url, format="slack")
    prints = {submission.fingerprint(spec, each) for each in (None, plain, slack)}
    assert len(prints) == 3


@pytest.mark.parametrize("lost", [False, True], ids=["Redis stays", "Redis is lost"])
def test_a_retried_job_is_told_about_again(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
    flush: redis.Redis,
    lost: bool,
) -> None:
    job = submit(client, wishing(body, receiver, "job.queued", "job.cancelled"))
    client.post(job["links"]["cancel"])
    dispatcher.step()
    if lost:
        flush.flushdb()
        restore(services.journal, services.ledger, job["id"])
        dispatcher = _dispatcher(services)  # it scans for subscriptions that Redis has lost
        dispatcher.step()
    assert waiting(services) == []
    client.post(job["links"]["retry"])
    dispatcher.step()
    client.post(job["links"]["cancel"])
    dispatcher.step()
    told = [(message["type"], message["data"]["run"]) for message in receiver.messages]
    assert told == [(f"job.{state}", run) for run in (1, 2) for state in ("queued", "cancelled")]
    assert waiting(services) == []

    services.ledger.mark_intact()
    client.delete(job["links"]["self"])
    dispatcher.step()
    assert list(services.outbox.subscribed()) == []


def test_what_happens_while_the_end_is_told_is_told_too(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
) -> None:
    job = submit(client, wishing(body, receiver, "job.cancelled"))
    client.post(job["links"]["cancel"])

    def retry_and_cancel(handler: BaseHTTPRequestHandler) -> None:
        receiver.behave = None
        client.post(job["links"]["retry"])
        client.post(job["links"]["cancel"])
        handler.send_response(204)
        handler.end_headers()

    receiver.behave = retry_and_cancel
    dispatcher.step()
    dispatcher.step()
    assert [message["data"]["run"] for message in receiver.messages] == [1, 2]
    assert waiting(services) == []


def test_what_is_not_taken_is_sent_again_in_order(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
) -> None:
    receiver.answers = [500, 302, 200]
    job = submit(client, wishing(body, receiver, "job.queued", "job.cancelled"))
    client.post(job["links"]["cancel"])
    until(dispatcher, lambda: len(receiver.requests) == 4)
    types = [message["type"] for message in receiver.messages]
    assert types == ["job.queued", "job.queued", "job.queued", "job.cancelled"]
    ids = [verify(SECRET, headers, sent) for headers, sent in receiver.requests]
    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]
    dispatcher.step()
    assert waiting(services) == []


def test_the_loss_of_redis_loses_no_message(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
    flush: redis.Redis,
) -> None:
    job = submit(client, wishing(body, receiver))
    client.post(job["links"]["cancel"])
    flush.flushdb()
    dispatcher.step()  # the ledger does not know the job yet
    assert receiver.requests == []
    assert list(services.outbox.subscribed()) == [job["id"]]
    restore(services.journal, services.ledger, job["id"])
    dispatcher.step()
    assert [message["type"] for message in receiver.messages] == ["job.cancelled"]


@pytest.mark.parametrize("answer", [410, None])
def test_who_is_gone_is_left_alone(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
    answer: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its own word, or because nothing was taken for too long."""
    if answer is None:
        monkeypatch.setattr("api.webhooks.dispatcher.MAX_FAILURES", 2)
    receiver.answers = [answer or 503] * 10
    job = submit(client, wishing(body, receiver))
    client.post(job["links"]["cancel"])
    until(dispatcher, lambda: waiting(services) == [])
    assert len(receiver.requests) == (1 if answer else 3)


@pytest.mark.parametrize("off_by", [-86_400.0, 86_400.0])
def test_a_wrong_clock_of_the_reconciler_delays_and_drops_nothing(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    off_by: float,
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + off_by)
    # Of a job that is being submitted: not yet in the ledger.
    young = Subscription(
        tenant="acme", webhook_url="x", events=(), fingerprint="f", created_at=right()
    )
    services.outbox.subscribe("job_a", young)
    services.ledger.mark_intact()
    receiver.answers = [503]
    job = submit(client, wishing(body, receiver, "job.cancelled"))
    client.post(job["links"]["cancel"])
    until(dispatcher, lambda: len(receiver.requests) == 2)
    assert "job_a" in services.outbox.subscribed()


def test_a_job_that_never_came_about(services: Services, dispatcher: Dispatcher) -> None:
    old = Subscription(
        tenant="acme", webhook_url="x", events=(), fingerprint="f", created_at=time.time() - 7200
    )
    services.outbox.subscribe("job_a", old)
    dispatcher.step()  # a ledger that is not complete does not tell
    assert list(services.outbox.subscribed()) == ["job_a"]
    services.ledger.mark_intact()
    services.outbox.schedule("job_a", time.time())
    dispatcher.step()
    assert list(services.outbox.subscribed()) == []


def test_one_job_that_nothing_can_be_made_of_keeps_no_other_from_being_told(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
    flush: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither in the same pass nor in those that follow."""
    poisonous = submit(client, wishing(body, receiver))
    flush.hset(f"strucprune:webhook:{poisonous['id']}", "failures", "many")
    others = [submit(client, wishing(elsewhere(body), receiver)) for _ in range(2)]
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(dispatcher, stop, 0.02))
    thread.start()
    try:
        for number, job in enumerate(others, 1):
            client.post(job["links"]["cancel"])
            deadline = time.monotonic() + 20
            while len(receiver.requests) < number and time.monotonic() < deadline:
                time.sleep(0.02)
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()
    assert [message["data"]["job_id"] for message in receiver.messages] == [
        job["id"] for job in others
    ]
    (told,) = [record for record in caplog.records if poisonous["id"] in record.getMessage()]
    assert told.exc_info is not None


def test_a_pass_that_fails_is_not_the_last(
    dispatcher: Dispatcher,
    services: Services,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the reason: nobody would see that the thread is gone."""
    stop = threading.Event()
    passes = 0

    def due(*_: object) -> list[str]:
        nonlocal passes
        passes += 1
        if passes == 3:
            stop.set()
        raise RuntimeError("odd")

    monkeypatch.setattr(services.outbox, "due", due)
    run(dispatcher, stop, 0.001)
    assert passes == 3
    assert all(record.exc_info for record in caplog.records)


def test_refused_at_submission(
    client: TestClient, keys: dict[str, str], body: dict[str, Any], services: Services
) -> None:
    for url in ("http://10.0.0.1/", "https://example.com/?token=secret", "ftp://127.0.0.1/"):
        answer = client.post(JOBS, json={**body, "notifications": {"webhook_url": url}})
        assert (answer.status_code, answer.json()["code"]) == (422, "webhook_not_allowed")
        assert answer.json()["errors"][0]["pointer"] == "/notifications/webhook_url"
        assert "secret" not in answer.text
    rival = {"Authorization": f"Bearer {keys['rival']}"}
    wish = {**body, "notifications": {"webhook_url": "http://127.0.0.1/"}}
    del services.settings.webhook_secrets["rival"]
    answer = client.post(f"{JOBS}/validate", json=wish, headers=rival)
    assert answer.json()["issues"][0]["pointer"] == "/notifications"
    local = {"webhook_url": "http://127.0.0.1/"}
    for wrong in ({"url": "x"}, {**local, "events": ["job.ended"]}, {**local, "format": "teams"}):
        answer = client.post(JOBS, json={**body, "notifications": wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert list(services.outbox.subscribed()) == []


def test_a_refused_request_does_not_redirect_the_accepted_one(
    client: TestClient,
    services: Services,
    dispatcher: Dispatcher,
    receiver: Receiver,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two requests with one key: the first is accepted while the second one is looked at."""
    ours = wishing(body, receiver, "job.cancelled")
    theirs = {**body, "notifications": {"webhook_url": f"http://127.0.0.1:{receiver.port}/theirs"}}
    once = {"Idempotency-Key": "k"}
    accepted: list[dict[str, Any]] = []
    examined = submission.examine

    def examine(*arguments: Any) -> Any:
        if not accepted:
            monkeypatch.setattr(submission, "examine", examined)
            accepted.append(submit(client, ours, **once))
        return examined(*arguments)

    monkeypatch.setattr(submission, "examine", examine)
    answer = client.post(JOBS, json=theirs, headers=once)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    client.post(accepted[0]["links"]["cancel"])
    dispatcher.step()
    assert receiver.paths == ["/hook?x=1"]
    assert [message["type"] for message in receiver.messages] == ["job.cancelled"]

    services.ledger.mark_intact()
    client.delete(accepted[0]["links"]["self"])
    dispatcher.step()
    assert list(services.outbox.subscribed()) == [accepted[0]["id"]]  # it may be under way still
    monkeypatch.setattr("api.webhooks.dispatcher._ORPHAN_SECONDS", 0.0)
    services.outbox.schedule(accepted[0]["id"], time.time())
    dispatcher.step()
    assert list(services.outbox.subscribed()) == []
    assert waiting(services) == []


@pytest.mark.parametrize("step", ["outbox.subscribe", "outbox.schedule", "ledger.create"])
def test_a_death_while_a_job_is_submitted_loses_no_message(
    client: TestClient,
    services: Services,
    receiver: Receiver,
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    part, _, verb = step.partition(".")
    once = {"Idempotency-Key": "k"}

    def die(*_: object, **more: object) -> None:
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(services, part), verb, die)
        assert client.post(JOBS, json=wishing(body, receiver), headers=once).status_code == 500
    job = submit(client, wishing(body, receiver), **once)
    client.post(job["links"]["cancel"])
    dispatcher = _dispatcher(services)
    dispatcher.step()
    dispatcher.step()
    assert [message["type"] for message in receiver.messages] == ["job.cancelled"]


def test_another_receiver_is_another_body(
    client: TestClient, receiver: Receiver, body: dict[str, Any]
) -> None:
    once = {"Idempotency-Key": "k"}
    job = submit(client, wishing(body, receiver), **once)
    assert submit(client, wishing(body, receiver), **once)["id"] == job["id"]
    answer = client.post(JOBS, json=body, headers=once)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", SECRET.removeprefix("whsec_")])
def test_a_bad_secret_fails_at_the_start(settings: Settings, secret: str) -> None:
    fields = settings.model_dump() | {"webhook_secrets": {"acme": secret}}
    with pytest.raises(ValueError, match="a webhook secret is whsec_"):
        Settings.model_validate(fields)


class Tarpit:
    """Takes connections and says nothing.

    Attributes:
        came: How many connections.
        open: How many of them are open now.
        most: The most that ever were.
    """

    def __init__(self) -> None:
        self.came = self.open = self.most = 0
        self._held: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        """Take no more connections, and end those that are open."""
        with contextlib.suppress(OSError):
            # Else the thread that accepts would keep it open.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._held:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hold, args=(connection,), daemon=True).start()

    def _hold(self, connection: socket.socket) -> None:
        with self._lock:
            self.came, self.open = self.came + 1, self.open + 1
            self.most = max(self.most, self.open)
            self._held.add(connection)
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
        with self._lock:
            self._held.remove(connection)
            self.open -= 1


@pytest.fixture
def tarpit() -> Iterator[Tarpit]:
    found = Tarpit()
    yield found
    found.close()


def submitted(
    client: TestClient, body: dict[str, Any], url: str, key: str, count: int
) -> list[dict[str, Any]]:
    """Jobs of one tenant, cancelled, so that their end is to be told."""
    jobs = []
    for _ in range(count):
        wish = {**body, "notifications": {"webhook_url": url}}
        headers = {"Authorization": f"Bearer {key}"}
        answer = client.post(JOBS, json=wish, headers=headers)
        assert answer.status_code == 202, answer.text
        jobs.append(answer.json())
        client.post(jobs[-1]["links"]["cancel"], headers=headers)
    return jobs


def soon(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def running(dispatcher: Dispatcher) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(dispatcher, stop, 0.02))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_tarpit_of_one_tenant_delays_no_other(
    client: TestClient,
    services: Services,
    receiver: Receiver,
    tarpit: Tarpit,
    keys: dict[str, str],
    body: dict[str, Any],
) -> None:
    """More messages than there are senders, each for longer than this test takes."""
    submitted(client, body, tarpit.url, keys["acme"], AT_ONCE + 8)
    patient = _dispatcher(services, timeout_seconds=60, breakers=Breakers())
    with running(patient):
        soon(lambda: tarpit.open == PER_TENANT)
        jobs = submitted(client, body, receiver.url, keys["rival"], 5)
        soon(lambda: len(receiver.requests) == len(jobs))
        # All are told while the first messages to the tarpit are still on their way.
        assert (tarpit.came, tarpit.open) == (PER_TENANT, PER_TENANT)
        tarpit.close()
    assert tarpit.most == PER_TENANT
    # Those that wait do not lie in memory, and are spread over time.
    assert len(waiting(services)) == 10  # as many as were asked for


def test_a_receiver_that_does_not_answer_is_left_alone(
    client: TestClient,
    services: Services,
    receiver: Receiver,
    tarpit: Tarpit,
    keys: dict[str, str],
    body: dict[str, Any],
) -> None:
    """For a while; others of the same tenant are told, and it too once it answers."""
    now = [0.0]
    breakers = Breakers(first_pause_seconds=60, clock=lambda: now[0])
    dispatcher = _dispatcher(services, timeout_seconds=0.5, breakers=breakers)
    submitted(client, body, tarpit.url, keys["acme"], 8)
    with running(dispatcher):
        soon(lambda: tarpit.came >= FAILURES)
        (job,) = submitted(client, body, receiver.url, keys["acme"], 1)
        soon(lambda: len(receiver.requests) == 1)
        soon(lambda: tarpit.open == 0)
        time.sleep(0.3)  # many passes
        # One more may have been on its way as the third failed.
        assert tarpit.came < FAILURES + PER_TENANT
        came = tarpit.came
        now[0] = 1000.0
        for job_id in waiting(services):
            services.outbox.schedule(job_id, time.time())
        soon(lambda: tarpit.came > came)
        time.sleep(0.3)
        assert tarpit.came == came + 1  # one tries
    assert receiver.messages[0]["data"]["job_id"] == job["id"]


def test_what_waits_for_a_receiver_for_very_long_is_given_up(
    client: TestClient,
    services: Services,
    tarpit: Tarpit,
    keys: dict[str, str],
    body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.webhooks.dispatcher._MAX_AGE_SECONDS", 0.0)
    breakers = Breakers()
    for _ in range(FAILURES):
        breakers.failed(("acme", "127.0.0.1", tarpit.port))
    submitted(client, body, tarpit.url, keys["acme"], 1)
    dispatcher = _dispatcher(services, breakers=breakers)
    dispatcher.step()
    dispatcher.step()
    assert waiting(services) == []
    assert tarpit.came == 0


def test_breakers() -> None:
    now = [0.0]
    breakers = Breakers(first_pause_seconds=10, clock=lambda: now[0])
    ours, theirs = ("a", "h", 443), ("b", "h", 443)
    for _ in range(FAILURES):
        assert breakers.wait_seconds(ours) == 0
        breakers.failed(ours)
    assert breakers.wait_seconds(ours) == 10
    assert breakers.wait_seconds(theirs) == 0  # another tenant's, at the same host
    now[0] = 10.0
    assert breakers.wait_seconds(ours) == 0
    assert breakers.wait_seconds(ours) == 10  # one is tried
    breakers.failed(ours)
    assert breakers.wait_seconds(ours) == 20
    for _ in range(30):
        breakers.failed(ours)
    assert breakers.wait_seconds(ours) == 600
    breakers.answered(ours)
    assert breakers.wait_seconds(ours) == 0
    for number in range(10_000):
        breakers.failed(("a", "h", number))
    assert len(breakers._troubles) == 4096


def test_lanes() -> None:
    lanes = Lanes(at_once=3, per_tenant=2)
    assert [lanes.enter("a") for _ in range(3)] == [True, True, False]
    assert lanes.enter("b")
    assert not lanes.enter("c")  # all are taken
    lanes.leave("a", 10.0)
    assert lanes.enter("c")
    # Jobs without a place are spread by the tenant's pace, in bounds.
    turns = [lanes.next_turn("a") for _ in range(100)]
    assert turns[1] - turns[0] == pytest.approx(5.0)
    assert turns[-1] <= time.time() + 300
    assert lanes.next_turn("new") <= time.time() + 0.2


def test_a_name_server_that_does_not_answer(receiver: Receiver) -> None:
    """Within the limit of a message, and in bounded threads; other tenants' names resolve."""
    go_on = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        if host == "hooks.test":
            go_on.wait(30)
        return ["127.0.0.1"]

    sender = WebhookClient(LOCAL, resolve=resolve, timeout_seconds=0.1)
    before = threading.active_count()
    try:
        for _ in range(12):
            began = time.monotonic()
            with pytest.raises(NotDelivered, match="does not resolve"):
                sender.post("http://hooks.test/x", {}, b"{}", "acme")
            assert time.monotonic() - began < 5
        assert threading.active_count() - before <= 4
        WebhookClient(LOCAL, resolve=resolve, lookups=sender.lookups).post(
            receiver.url, {}, b"{}", "rival"
        )
        assert len(receiver.requests) == 1
    finally:
        go_on.set()
    soon(lambda: threading.active_count() <= before + 1)  # the receiver's own
    WebhookClient(LOCAL, resolve=resolve, lookups=sender.lookups).post(
        receiver.url, {}, b"{}", "acme"
    )


def test_a_resolver_s_failure_is_told(receiver: Receiver) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such name")

    with pytest.raises(NotDelivered, match="does not resolve"):
        WebhookClient(LOCAL, resolve=resolve).post(receiver.url, {}, b"{}")
