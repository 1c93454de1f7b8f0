"""Against a real S3 server, and against endpoints that misbehave."""

from __future__ import annotations

import gc
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import (
    AccessDenied,
    CredentialsExpired,
    ObjectNotFound,
    Stopped,
    StorageError,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.storage import s3, s3_transfer
from strucprune_core.storage.open import open_object, open_store
from strucprune_core.storage.s3 import S3Store, open_s3
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import ObjectInfo, Store
from tests.support.flaky_proxy import FlakyProxy

pytestmark = pytest.mark.services
LOCAL = S3Settings("http://127.0.0.1:1", access_key_id="x", secret_access_key="y")


@pytest.fixture(scope="module")
def settings(s3_server: S3Server) -> S3Settings:
    return S3Settings(
        endpoint_url=s3_server.endpoint_url,
        access_key_id=s3_server.access_key_id,
        secret_access_key=s3_server.secret_access_key,
        addressing_style="path",
    )


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    name = f"store-{uuid4().hex[:8]}"
    s3_server.create_bucket(name)
    return name


@pytest.fixture
def store(settings: S3Settings, bucket: str) -> S3Store:
    return open_s3(bucket, f"root/{uuid4().hex}", settings)


def test_put_read_stat_delete(store: S3Store) -> None:
    typed: Store = store
    typed.put("a/b.bin", b"0123456789")
    assert store.stat("a/b.bin") == ObjectInfo("a/b.bin", 10)
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read("a/b.bin", 3) == b"3456789"
    assert store.read("a/b.bin", 3, 4) == b"3456"
    assert store.read("a/b.bin", 10, 0) == b""
    store.put("a/b.bin", b"")
    assert store.read("a/b.bin") == b""
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.stat("a/b.bin") is None
    assert store.local_path("a/b.bin") is None
    for length in (None, 0, 1):
        with pytest.raises(ObjectNotFound):
            store.read("a/b.bin", 0, length)


def test_reading_past_the_end_fails(store: S3Store) -> None:
    store.put("x", b"0123")
    for start, length in ((2, 3), (4, 1), (9, 1), (9, 0)):
        with pytest.raises(StorageError):
            store.read("x", start, length)


def test_list(store: S3Store) -> None:
    keys = ["a.txt", "a/b", "a/c/d", "a0", "b"]
    for key in keys:
        store.put(key, b"x")
    assert sorted(info.key for info in store.list()) == sorted(keys)
    assert [info.key for info in store.list("a/")] == ["a/b", "a/c/d"]
    assert list(store.list("nothing")) == []
    child = store.child("a")
    assert [info.key for info in child.list()] == ["b", "c/d"]
    assert child.uri == f"{store.uri}/a"


def test_keys_cannot_leave_the_prefix(store: S3Store) -> None:
    for key in ("../x", "", "/x", "a//b"):
        with pytest.raises(AccessDenied):
            store.read(key)
        with pytest.raises(AccessDenied):
            store.put(key, b"")


def test_a_listing_tells_versions(store: S3Store) -> None:
    store.put("a", b"one")
    store.put("b", b"one")
    before = {info.key: info.version for info in store.list()}
    assert before == {info.key: info.version for info in store.list()}
    store.put("a", b"two")
    after = {info.key: info.version for info in store.list()}
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_a_write_that_breaks_off_writes_nothing(
    settings: S3Settings, s3_server: S3Server, bucket: str, store: S3Store
) -> None:
    """Its retry writes all of it; else the first outcome of a job could be an empty file."""
    with FlakyProxy(s3_server.port) as proxy:
        behind = replace(settings, endpoint_url=f"http://127.0.0.1:{proxy.port}")
        broken = open_s3(bucket, store.prefix, behind)
        for name, write in (("if absent", broken.put_if_absent), ("put", broken.put)):
            proxy.keep_bodies(2)
            write(name, b"whole")
            assert store.read(name) == b"whole"


# Of half a time zone.
@pytest.mark.filterwarnings("ignore::dateutil.parser.UnknownTimezoneWarning")
def test_an_answer_that_breaks_off_anywhere_is_no_answer(
    s3_server: S3Server,
    settings: S3Settings,
    bucket: str,
    store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a head ends, the client library takes it for whole, even in the middle of a number."""
    data = bytes(range(250)) * 20
    store.put("object", data)
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 1)
    monkeypatch.setattr(s3, "BODY_ATTEMPTS", 1)
    with FlakyProxy(s3_server.port) as proxy:
        behind = replace(settings, endpoint_url=f"http://127.0.0.1:{proxy.port}")
        broken = open_s3(bucket, store.prefix, behind)
        asked: dict[str, tuple[Callable[[], object], object]] = {
            "size": (lambda: broken.stat("object"), ObjectInfo("object", len(data))),
            "part": (lambda: bytes(broken.read("object", 123, 2000)), data[123:2123]),
            "rest": (lambda: bytes(broken.read("object", 123)), data[123:]),
            "whole": (lambda: bytes(broken.read("object")), data),
        }
        for name, (ask, right) in asked.items():
            outages = 0
            for place in range(1, 600):
                proxy.cut(place)
                try:
                    answer = ask()
                except StorageUnavailable:
                    outages += 1
                    continue
                assert answer == right, f"{name}, broken off after {place} bytes"
            assert outages > 100, name


def test_put_if_absent_has_exactly_one_winner(store: S3Store) -> None:
    barrier = threading.Barrier(16)
    wins: list[bytes] = []

    def race(number: int) -> None:
        barrier.wait()
        if store.put_if_absent("race", str(number).encode()):
            wins.append(str(number).encode())

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.read("race") == wins[0]


@pytest.mark.parametrize("mode", ["when_required", "when_supported"])
def test_multipart_upload_and_download(
    settings: S3Settings, bucket: str, tmp_path: Path, mode: str
) -> None:
    store = open_s3(bucket, f"big-{mode}", replace(settings, checksum_mode=mode))  # type: ignore[arg-type]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(40 * 2**20 + 7))
    store.upload("big", source)
    store.download("big", target)
    assert target.read_bytes() == source.read_bytes()
    assert store.read("big", 20 * 2**20, 1000) == source.read_bytes()[20 * 2**20 :][:1000]
    with pytest.raises(ObjectNotFound):
        store.download("missing", target)


# s3transfer drops the connection that an abandoned part came over; the collector closes it.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
def test_a_transfer_tells_its_progress_and_can_be_abandoned(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "TICK_SECONDS", 0.002)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(64 * 2**20))
    mine = threading.get_ident()
    seen: list[int] = []

    def tick(done: int) -> None:
        assert threading.get_ident() == mine  # A tick need not be thread-safe.
        seen.append(done)

    watched: list[Callable[[], None]] = [
        lambda: store.upload("big", source, tick),
        lambda: store.download("big", target, tick),
    ]
    for transfer in watched:
        seen.clear()
        transfer()
        assert len(seen) > 1
        assert 0 <= min(seen) <= max(seen) <= 64 * 2**20
        assert max(seen) > 0
    assert target.read_bytes() == source.read_bytes()
    target.unlink()

    def stop(done: int) -> None:
        raise Stopped("asked to")

    abandoned: list[Callable[[], None]] = [
        lambda: store.upload("other", source, stop),
        lambda: store.download("big", target, stop),
    ]
    for transfer in abandoned:
        with pytest.raises(Stopped, match="asked to"):
            transfer()
    assert [info.key for info in store.list()] == ["big"]
    unfinished = store.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])
    assert unfinished == []
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    gc.collect()  # Here, where the warning is expected, and in no later test.


def test_presigned_urls(store: S3Store) -> None:
    store.put("x", b"shared")
    url = store.presign("x", 60)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"shared"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url.replace("Signature=", "Signature=0"))
    refused.value.close()


# Every character that a key may have and that a URL, a query or a shell takes for something else.
ODD = (
    "run #3",
    "50%",
    "a?b=c&d",
    "x+y z",
    "%2F",
    "é数🦙",
    "'\"<>|*;:@=,!$()[]{}^`~",
    "...",
    "-_.~",
)


@pytest.mark.parametrize("name", ODD)
def test_odd_keys(settings: S3Settings, bucket: str, tmp_path: Path, name: str) -> None:
    prefix = f"odd-{uuid4().hex}/{name}"
    store = open_store(f"s3://{bucket}/{prefix}/", settings)
    assert isinstance(store, S3Store)
    assert store.uri == f"s3://{bucket}/{prefix}"
    store.check_writable()
    assert store.put_if_absent(name, b"one")
    assert not store.put_if_absent(name, b"two")
    (tmp_path / "file").write_bytes(b"three")
    store.upload(f"sub/{name}", tmp_path / "file")
    assert {(info.key, info.size_bytes) for info in store.list()} == {(name, 3), (f"sub/{name}", 5)}
    assert [info.key for info in store.list(f"sub/{name[:1]}")] == [f"sub/{name}"]
    store.download(f"sub/{name}", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == store.child("sub").read(name) == b"three"
    parent, key = open_object(f"s3://{bucket}/{prefix}/{name}", settings)
    assert bytes(parent.read(key)) == b"one"
    assert key == name
    assert httpx.get(store.presign(name, 60)).content == b"one"
    with urllib.request.urlopen(store.presign(f"sub/{name}", 60)) as answer:
        assert answer.read() == b"three"
    store.delete(name)
    assert store.stat(name) is None


def test_a_check_for_writing_leaves_no_trace(store: S3Store) -> None:
    store.check_writable()
    assert list(store.list()) == []
    found = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    assert found.get("Uploads", []) == []


def test_a_whole_bucket_can_be_checked_for_writing(settings: S3Settings, bucket: str) -> None:
    open_s3(bucket, "", settings).check_writable()


def test_bad_credentials_are_access_denied(settings: S3Settings, bucket: str) -> None:
    for wrong in (
        replace(settings, secret_access_key="wrong"),
        replace(settings, access_key_id="nobody"),
    ):
        store = open_s3(bucket, "x", wrong)
        for verb in (
            lambda store=store: store.stat("k"),
            lambda store=store: store.read("k"),
            lambda store=store: list(store.list()),
            lambda store=store: store.put("k", b""),
            lambda store=store: store.put_if_absent("k", b""),
            store.check_writable,
        ):
            with pytest.raises(AccessDenied, match="refused access"):
                verb()


def test_upload_unwraps_the_services_answer(settings: S3Settings, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(ObjectNotFound):
        open_s3("no-such-bucket", "x", settings).upload("k", source)


def test_unknown_bucket(settings: S3Settings) -> None:
    store = open_s3("no-such-bucket", "x", settings)
    assert store.stat("k") is None
    with pytest.raises(ObjectNotFound, match="no such bucket"):
        store.read("k")
    with pytest.raises(ObjectNotFound, match="no such bucket"):
        list(store.list())
    with pytest.raises(ObjectNotFound, match="no such bucket"):
        store.check_writable()


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(AccessDenied, match="no usable S3 credentials"):
        open_store("s3://bucket/x", S3Settings("http://127.0.0.1:1")).read("k")


def test_unreachable_endpoint() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    store = open_store("s3://bucket/x", replace(LOCAL, endpoint_url=endpoint))
    with pytest.raises(StorageUnavailable) as caught:
        store.read("k")
    assert caught.value.retryable


class _Answer(BaseHTTPRequestHandler):
    """Answers every GET with what the server was given."""

    status = 200
    headers_sent: tuple[tuple[str, str], ...] = ()
    body = b""

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.body)

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        for name, value in self.headers_sent:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def misbehaving(
    status: int, headers: dict[str, str], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    handler = type(
        "Handler",
        (_Answer,),
        {"status": status, "headers_sent": tuple(headers.items()), "body": body},
    )
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield open_store(
                "s3://bucket/x", replace(LOCAL, endpoint_url=endpoint, addressing_style="path")
            )
        finally:
            server.shutdown()
            thread.join()


def _error_body(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", StorageUnavailable),
        (500, "InternalError", StorageUnavailable),
        (502, "Odd", StorageUnavailable),
        (429, "TooManyRequests", StorageUnavailable),
        (403, "SignatureDoesNotMatch", AccessDenied),
        (403, "Odd", AccessDenied),
        (404, "NoSuchBucket", ObjectNotFound),
        (404, "NoSuchKey", ObjectNotFound),
        (400, "Odd", StorageError),
        (400, "ExpiredToken", CredentialsExpired),
        (403, "RequestTimeTooSkewed", AccessDenied),
        (301, "PermanentRedirect", StorageError),
        (400, "AuthorizationHeaderMalformed", StorageError),
    ],
)
def test_answers_are_typed(
    status: int, code: str, expected: type[StrucPruneError], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = _error_body(code)
    headers = {"Content-Length": str(len(body))}
    with misbehaving(status, headers, body, monkeypatch) as store:
        with pytest.raises(expected) as caught:
            store.read("k")
        assert type(caught.value) is expected


def test_a_body_that_breaks_off_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Content-Length": "1000"}
    with (
        misbehaving(200, headers, b"only this", monkeypatch) as store,
        pytest.raises(StorageUnavailable),
    ):
        store.read("k")


def test_an_answer_that_breaks_off_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its head, or in the middle of its XML: nothing is wrong with what was asked for."""
    with misbehaving(200, {}, b"", monkeypatch) as store:
        for ask in (lambda: store.read("k"), lambda: store.stat("k"), lambda: [*store.list()]):
            with pytest.raises(StorageUnavailable):
                ask()
    half = b"<?xml version='1.0'?><ListBucketResult><Name>buck"
    headers = {"Content-Length": str(len(half))}
    with misbehaving(200, headers, half, monkeypatch) as store, pytest.raises(StorageUnavailable):
        list(store.list())


def _go_on(listener: socket.socket) -> None:
    """Answer each request with the beginning of "100 Continue", and hang up."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 100 Continue\r\n")


@pytest.mark.timeout(60, method="thread")  # no exception gets out of that loop
def test_an_upload_whose_permission_breaks_off_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore waits for the rest in an endless loop (`AWSConnection._consume_headers`)."""
    (tmp_path / "file").write_bytes(b"x" * 1000)
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_go_on, args=(listener,), daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        place = replace(LOCAL, endpoint_url=endpoint, addressing_style="path")
        with pytest.raises(StorageUnavailable):
            open_store("s3://bucket/x", place).upload("k", tmp_path / "file")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_server_that_ignores_ranges_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Content-Length": "4", "ETag": '"a"', "Last-Modified": formatdate(usegmt=True)}
    with (
        misbehaving(200, headers, b"0123", monkeypatch) as store,
        pytest.raises(StorageError, match="ignored the byte range"),
    ):
        store.read("k", 1, 2)


def test_a_server_that_speaks_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"<html>hello</html>"
    headers = {"Content-Length": str(len(body))}
    with misbehaving(200, headers, body, monkeypatch) as store, pytest.raises(StorageError):
        list(store.list())
