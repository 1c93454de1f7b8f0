"""A real ledger (Valkey) and a journal on disk; the app on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from fastapi.testclient import TestClient

from api.app import create_app
from api.inspection.inspectors import Inspectors
from api.jobs.journal import Journal
from api.jobs.ledger import Ledger, connect
from api.services import Services
from api.settings import ApiKey, Settings
from embedded.valkey import ValkeyServer
from strucprune_core.access.keys import hash_key, new_key
from strucprune_core.storage.local import LocalStore
from tests.support.clock import ADVANCED_CLOCK

PEPPER = "pepper-of-the-tests"
# A database of our own, so that flushing it hurts no other test package.
DATABASE = 7


@pytest.fixture(scope="session")
def redis_url(valkey_server: ValkeyServer) -> str:
    return f"{valkey_server.url.rsplit('/', 1)[0]}/{DATABASE}"


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    """An empty ledger in a namespace of its own; tests may set its clock forward."""
    ledger = connect(redis_url, f"test-{uuid4().hex}", ADVANCED_CLOCK)
    yield ledger
    ledger.close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(LocalStore(tmp_path / "state"))


@pytest.fixture
def flush(redis_url: str) -> Iterator[redis.Redis]:
    """The app's Redis, emptied; call `flushdb()` to lose it again."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client


@pytest.fixture(scope="session")
def keys() -> dict[str, str]:
    return {name: new_key(PEPPER) for name in ("acme", "rival", "acme-reader", "operator")}


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, keys: dict[str, str]) -> Settings:
    return Settings(
        redis_url=redis_url,
        state_uri=str(tmp_path / "state"),
        key_pepper=PEPPER,
        api_keys=(
            ApiKey(tenant="acme", key_hmac=hash_key(keys["acme"], PEPPER)),
            ApiKey(tenant="rival", key_hmac=hash_key(keys["rival"], PEPPER)),
            ApiKey(
                tenant="acme",
                key_hmac=hash_key(keys["acme-reader"], PEPPER),
                scopes=frozenset({"jobs:read"}),
            ),
            ApiKey(
                tenant="operations",
                key_hmac=hash_key(keys["operator"], PEPPER),
                scopes=frozenset({"admin"}),
            ),
        ),
        allow_local_files=True,
    )


@pytest.fixture(scope="session")
def inspectors() -> Iterator[Inspectors]:
    """Helpers that the apps of all tests share: each takes a second to start."""
    with Inspectors() as inspectors:
        yield inspectors


@pytest.fixture
def client(
    settings: Settings, keys: dict[str, str], flush: redis.Redis, inspectors: Inspectors
) -> Iterator[TestClient]:
    """The app, called by tenant acme."""
    headers = {"Authorization": f"Bearer {keys['acme']}"}
    app = create_app(settings, inspectors)
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def services(client: TestClient) -> Services:
    """What the app of `client` works with."""
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


@pytest.fixture
def body(tmp_path: Path, tiny_model: Path, text_file: Path) -> dict[str, Any]:
    """A job that the app of `client` accepts."""
    return {
        "model": {"uri": str(tiny_model)},
        "output": {"uri_prefix": str(tmp_path / "output")},
        "pruning": {"sparsity": 0.25},
        "calibration": {"uri": str(text_file), "samples": 4, "sequence_length": 32},
        "labels": {"team": "nlp"},
    }
