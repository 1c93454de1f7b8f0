"""A wrong setting is told at the start, in one line and without secrets."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from api.settings import ApiKey, Settings
from tests.api.conftest import PEPPER
from worker.settings import Settings as WorkerSettings

ROOT = Path(__file__).parents[2]
PASSWORD = "password-of-redis"
GOOD = {
    "STRUCPRUNE_REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:1/0",
    "STRUCPRUNE_KEY_PEPPER": PEPPER,
    "STRUCPRUNE_STATE_URI": "s3://bucket/state",
}


def environment(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in {**GOOD, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", [Settings, WorkerSettings])
def test_a_missing_setting_shows_no_other(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    environment(monkeypatch, STRUCPRUNE_STATE_URI=None)
    with pytest.raises(ValidationError, match="state_uri") as caught:
        kind()
    assert PEPPER not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("kind", [Settings, WorkerSettings])
def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    environment(monkeypatch, STRUCPRUNE_BROKER_URL=f"redis://:{PASSWORD}@broker")
    assert PASSWORD not in repr(kind())


def test_expiry_needs_an_offset() -> None:
    key = {"tenant": "acme", "key_hmac": "0" * 64}
    assert ApiKey.model_validate({**key, "expires_at": "2030-01-01T00:00:00Z"}).expires_at
    with pytest.raises(ValidationError, match="timezone"):
        ApiKey.model_validate({**key, "expires_at": "2030-01-01T00:00:00"})


@pytest.mark.parametrize("module", ["api", "api.reconciler", "worker"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("STRUCPRUNE_STATE_URI", None), ("STRUCPRUNE_REDIS_URL", f"redis://:{PASSWORD}@host:port")],
)
def test_a_wrong_setting_ends_the_program_with_one_line(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, value: str | None
) -> None:
    environment(monkeypatch, **{name: value})
    ended = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ended.returncode == 1
    assert name in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert PASSWORD not in ended.stderr
    assert PEPPER not in ended.stderr


def test_a_taken_port_ends_the_api_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment(monkeypatch, STRUCPRUNE_API_HOST="127.0.0.1", STRUCPRUNE_API_PORT=port)
        ended = subprocess.run(
            [sys.executable, "-m", "api"], cwd=ROOT, capture_output=True, text=True
        )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Cannot start: cannot listen on 127.0.0.1:{port}")
    assert "STRUCPRUNE_API_PORT" in line
