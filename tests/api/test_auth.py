from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient

from api.auth import Principal, authenticate
from api.keys import hash_key, main, new_key
from api.settings import ApiKey, Settings
from tests.api.conftest import PEPPER


def test_keys_are_random_and_hashes_peppered() -> None:
    assert new_key() != new_key()
    assert len(new_key()) >= 40
    assert hash_key("k", "pepper-one") != hash_key("k", "pepper-two")


def test_authenticate(settings: Settings, keys: dict[str, str]) -> None:
    assert authenticate(settings, keys["acme-reader"]) == Principal(
        "acme", frozenset({"jobs:read"})
    )
    assert authenticate(settings, new_key()) is None
    assert authenticate(settings, "") is None


@pytest.mark.parametrize(("hours", "valid"), [(1, True), (-1, False)])
def test_expiry(settings: Settings, hours: int, valid: bool) -> None:
    key = ApiKey(
        tenant="acme",
        key_hmac=hash_key("k", PEPPER),
        expires_at=datetime.now(UTC) + timedelta(hours=hours),
    )
    changed = settings.model_copy(update={"api_keys": (key,)})
    assert (authenticate(changed, "k") is not None) == valid


@pytest.mark.parametrize("header", [None, "Basic abc", "Bearer", "Bearer wrong", "Bearer \xe9"])
def test_no_or_bad_key_is_401(client: TestClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    del client.headers["Authorization"]
    answer = client.get("/v1/pruning-jobs", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthorized"


def test_a_reader_cannot_write(client: TestClient, keys: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {keys['acme-reader']}"}
    assert client.get("/v1/pruning-jobs", headers=headers).status_code == 200
    answer = client.post("/v1/pruning-jobs", headers=headers, json={})
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


def test_key_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["keys", "acme"])
    monkeypatch.setenv("STRUCPRUNE_KEY_PEPPER", PEPPER)
    main()
    key_line, entry_line = capsys.readouterr().out.splitlines()
    entry = ApiKey.model_validate_json(entry_line.split(": ", 1)[1])
    assert entry.key_hmac == hash_key(key_line.split()[-1], PEPPER)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRUCPRUNE_REDIS_URL", "redis://one")
    monkeypatch.setenv("STRUCPRUNE_STATE_URI", "s3://bucket/state")
    monkeypatch.setenv("STRUCPRUNE_KEY_PEPPER", PEPPER)
    entry = (
        f'[{{"tenant": "acme", "key_hmac": "{hash_key("k", PEPPER)}", "scopes": ["jobs:read"]}}]'
    )
    monkeypatch.setenv("STRUCPRUNE_API_KEYS", entry)
    monkeypatch.setenv("STRUCPRUNE_ALLOWED_PREFIXES", '{"acme": ["s3://bucket/acme"]}')
    monkeypatch.setenv("STRUCPRUNE_S3_ENDPOINT_URL", "http://store")
    monkeypatch.setenv("STRUCPRUNE_API_PORT", "9000")
    settings = Settings()
    assert settings.celery_broker_url == "redis://one"
    assert settings.s3.endpoint_url == "http://store"
    assert settings.api_port == 9000
    assert settings.allowed_prefixes == {"acme": ("s3://bucket/acme",)}
    assert authenticate(settings, "k") == Principal("acme", frozenset({"jobs:read"}))
    assert PEPPER not in repr(settings)
