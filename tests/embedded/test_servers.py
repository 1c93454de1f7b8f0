"""The embedded servers: real ones, with authentication, whose data outlives a crash."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import redis
from botocore.exceptions import ClientError

from embedded.processes import (
    ManagedProcess,
    ProcessError,
    _try_bind,
    accepts_connections,
    free_ports,
)
from embedded.s3 import S3Server
from embedded.valkey import ValkeyServer

ROOT = Path(__file__).parents[2]


def test_valkey_asks_for_its_password(valkey_server: ValkeyServer) -> None:
    with (
        redis.Redis(port=valkey_server.port) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    with redis.Redis.from_url(valkey_server.url) as client:
        assert client.ping()


def test_valkey_keeps_its_data_over_a_crash(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
            client.execute_command("WAITAOF", 1, 0, 5000)
        server.kill()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("key") == b"value"


def test_s3_refuses_what_a_real_one_refuses(s3_server: S3Server) -> None:
    s3_server.create_bucket("refusals")
    client = s3_server.client()
    client.put_object(Bucket="refusals", Key="once", Body=b"first")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket="refusals", Key="once", Body=b"second", IfNoneMatch="*")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        client.put_object(Bucket="never-made", Key="key", Body=b"")


def test_s3_keeps_its_data_over_a_crash(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        server.create_bucket("kept")
        server.client().put_object(Bucket="kept", Key="key", Body=b"value")
        server.kill()
        server.start()
        assert server.client().get_object(Bucket="kept", Key="key")["Body"].read() == b"value"


def test_servers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from embedded.valkey import ValkeyServer

        server = ValkeyServer(Path({str(tmp_path)!r}))
        server.start()
        print(server.port, flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    port = int(parent.stdout.readline())
    assert accepts_connections(port)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while accepts_connections(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not accepts_connections(port)


def test_a_failed_start_shows_the_log(tmp_path: Path) -> None:
    process = ManagedProcess(
        "broken",
        [sys.executable, "-c", "import sys; sys.exit('no such luck')"],
        log_directory=tmp_path,
    )
    with pytest.raises(ProcessError, match="no such luck"):
        process.wait_ready(lambda: False)


def test_stop_kills_what_ignores_it(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    process = ManagedProcess(
        "stubborn", [sys.executable, "-u", "-c", script], log_directory=tmp_path
    )
    process.wait_ready(lambda: "up" in process.log_tail())
    process.stop(grace_seconds=0.2)
    assert not process.running
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_free_ports_are_distinct_and_have_their_companions() -> None:
    ports = free_ports(5, companion=10_000)
    assert len(set(ports)) == 5
    assert all(port + 10_000 <= 65535 for port in ports)


def test_a_taken_port_leaves_no_socket_open() -> None:
    """Warnings are errors here, and an unclosed socket is one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert _try_bind(taken.getsockname()[1]) is None
            gc.collect()
    assert [str(warning.message) for warning in told] == []
