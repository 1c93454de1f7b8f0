from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.callers import Callers, Principal
from api.routes import events
from api.services import Services
from api.settings import ApiKey, Settings
from strucprune_core.access.key_store import KeyStore
from strucprune_core.access.keys import KeyRecord, hash_key, key_id, new_key
from strucprune_core.errors import StorageUnavailable
from strucprune_core.storage.local import LocalStore
from tests.api.conftest import PEPPER


def callers(settings: Settings, state: Path, **more: Any) -> Callers:
    store = KeyStore(LocalStore(state))
    return Callers(settings.api_keys, store, PEPPER, settings.key_cache_seconds, **more)


def stored(state: Path, **fields: Any) -> tuple[str, KeyRecord]:
    """A key kept in a state store."""
    key = new_key(PEPPER)
    record = KeyRecord.model_validate(
        {
            "id": key_id(key, PEPPER),
            "tenant": "acme",
            "key_hmac": hash_key(key, PEPPER),
            "created_at": datetime.now(UTC),
            **fields,
        }
    )
    KeyStore(LocalStore(state)).add(record)
    return key, record


def test_authenticate_by_environment(
    settings: Settings, keys: dict[str, str], tmp_path: Path
) -> None:
    known = callers(settings, tmp_path)
    assert known.authenticate(keys["acme-reader"]) == Principal("acme", frozenset({"jobs:read"}))
    assert known.authenticate(new_key(PEPPER)) is None
    assert known.authenticate("") is None


@pytest.mark.parametrize(("hours", "valid"), [(1, True), (-1, False)])
@pytest.mark.parametrize("kept", [True, False])
def test_expiry(settings: Settings, tmp_path: Path, hours: int, valid: bool, kept: bool) -> None:
    expires_at = datetime.now(UTC) + timedelta(hours=hours)
    if kept:
        key, _ = stored(tmp_path, expires_at=expires_at)
    else:
        key = "k"
        entry = ApiKey(tenant="acme", key_hmac=hash_key(key, PEPPER), expires_at=expires_at)
        settings = settings.model_copy(update={"api_keys": (entry,)})
    assert (callers(settings, tmp_path).authenticate(key) is not None) == valid


def test_a_stored_key_and_its_end(settings: Settings, tmp_path: Path) -> None:
    """A revocation holds once what was remembered is too old, and until then not."""
    now = [100.0]
    key, record = stored(tmp_path, scopes=["jobs:read"])
    known = callers(settings, tmp_path, clock=lambda: now[0])
    caller = known.authenticate(key)
    assert caller == Principal("acme", frozenset({"jobs:read"}))
    KeyStore(LocalStore(tmp_path)).revoke(record.id, datetime.now(UTC))
    assert known.confirm(caller)
    now[0] += settings.key_cache_seconds
    assert known.authenticate(key) is None
    assert not known.confirm(caller)


def test_a_new_key_is_known_although_it_was_asked_for_before(
    settings: Settings, tmp_path: Path
) -> None:
    now = [0.0]
    key, record = stored(tmp_path)
    LocalStore(tmp_path).delete(f"keys/{record.id}.json")
    known = callers(settings, tmp_path, clock=lambda: now[0])
    assert known.authenticate(key) is None
    KeyStore(LocalStore(tmp_path)).add(record)
    now[0] += settings.key_cache_seconds
    assert known.authenticate(key) is not None


def test_a_record_opens_for_its_own_key_only(settings: Settings, tmp_path: Path) -> None:
    """Whoever knows an id knows nothing."""
    key, record = stored(tmp_path)
    other = new_key(PEPPER)
    store = LocalStore(tmp_path)
    store.put(f"keys/{key_id(other, PEPPER)}.json", record.model_dump_json().encode())
    assert callers(settings, tmp_path).authenticate(other) is None
    assert callers(settings, tmp_path).authenticate(key[:-1]) is None


def test_made_up_keys_do_not_reach_the_store(settings: Settings, tmp_path: Path) -> None:
    class Counting(LocalStore):
        asked = 0

        def stat(self, key: str) -> Any:
            type(self).asked += 1
            return super().stat(key)

    known = Callers((), KeyStore(Counting(tmp_path)), PEPPER, 5.0)
    for _ in range(100):
        assert known.authenticate(new_key("another pepper!!")) is None
        assert known.authenticate("spk_" + "0" * 16) is None
    assert Counting.asked == 0
    key, _ = stored(tmp_path)
    for _ in range(10):
        assert known.authenticate(key) is not None
    assert Counting.asked == 1


def test_a_store_that_is_down_lets_nobody_in(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise StorageUnavailable("down")

    key, _ = stored(tmp_path / "state")
    monkeypatch.setattr(LocalStore, "stat", fail)
    answer = client.get("/v1/pruning-jobs", headers={"Authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


def test_a_stored_key_over_http(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    key, record = stored(tmp_path / "state", tenant="third", scopes=["jobs:read"])
    headers = {"Authorization": f"Bearer {key}"}
    assert client.get("/v1/pruning-jobs", headers=headers).json()["data"] == []
    assert client.post("/v1/pruning-jobs", headers=headers, json={}).status_code == 403
    KeyStore(LocalStore(tmp_path / "state")).revoke(record.id, datetime.now(UTC))
    with TestClient(create_app(settings), headers=headers) as another_process:
        answer = another_process.get("/v1/pruning-jobs")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_an_answer_that_lasts_ends_with_the_key(
    client: TestClient,
    services: Services,
    body: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else an open stream would outlive the key by hours."""
    monkeypatch.setattr(events, "CONFIRM_SECONDS", 0.01)
    monkeypatch.setattr(services.callers, "_cache_seconds", 0.0)
    job = client.post("/v1/pruning-jobs", json=body).json()
    key, record = stored(tmp_path / "state")
    store = KeyStore(LocalStore(tmp_path / "state"))
    later = threading.Timer(0.3, store.revoke, (record.id, datetime.now(UTC)))
    later.start()
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
    answer = client.get(job["links"]["events"], headers=headers)  # returns once the stream ends
    later.join()
    assert (answer.status_code, answer.text.count("id: ")) == (200, 1)


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


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    known = callers(settings, tmp_path)
    assert known.authenticate("k") == Principal("acme", frozenset({"jobs:read"}))
    assert PEPPER not in repr(settings)
