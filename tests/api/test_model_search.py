"""Models by the beginning of their URI: only where the caller may read, and within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from api import model_search
from api.model_search import MAX_SECONDS, FoundModels, find_models
from api.settings import Settings
from api.stores import Stores
from embedded.s3 import S3Server
from strucprune_core.errors import AccessDenied
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import ObjectInfo


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A bucket with models of two teams."""
    name, s3 = f"models-{uuid4().hex}", s3_server.client()
    s3.create_bucket(Bucket=name)
    for key in (
        "team-a/smol/config.json",
        "team-a/smol/model.safetensors",
        "team-a/small/config.json",
        "team-a/no-model/weights.bin",
        "team-a/my-config.json",
        "team-b/secret/config.json",
        "state/workspaces/x/config.json",
    ):
        s3.put_object(Bucket=name, Key=key, Body=b"{}")
    return name


@pytest.fixture
def search(settings: Settings, s3_server: S3Server, bucket: str) -> Any:
    """Find models as a tenant, who may name what is allowed here."""
    here = settings.model_copy(
        update={
            "state_uri": f"s3://{bucket}/state",
            "allowed_prefixes": {
                "acme": (f"s3://{bucket}/team-a", "s3://no-such-bucket/models"),
                "rival": (f"s3://{bucket}/team-b/",),
            },
        }
    )
    stores = Stores(
        S3Settings(
            s3_server.endpoint_url,
            access_key_id=s3_server.access_key_id,
            secret_access_key=s3_server.secret_access_key,
            addressing_style="path",
        )
    )

    def found(prefix: str, tenant: str = "acme", **open_to: Any) -> list[str]:
        settings = here.model_copy(update=open_to)
        result = find_models(prefix, tenant, settings, stores.open, 20)
        assert result.complete
        assert all(uri.startswith(f"s3://{bucket}/") for uri in result.uris)
        return [uri.removeprefix(f"s3://{bucket}/") for uri in result.uris]

    return found


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("", ["team-a/small", "team-a/smol"]),
        ("s3:", ["team-a/small", "team-a/smol"]),
        ("s3://{}", ["team-a/small", "team-a/smol"]),
        ("s3://{}/te", ["team-a/small", "team-a/smol"]),
        ("s3://{}/team-a/", ["team-a/small", "team-a/smol"]),
        ("s3://{}/team-a/smo", ["team-a/smol"]),
        ("s3://{}/team-a/smol/", ["team-a/smol"]),
        ("s3://{}/team-b/", []),
        ("s3://{}/team-b/secret", []),
        ("s3://{}/team-a/../team-b/", []),
        ("s3://{}/team-a/%2e%2e/", []),
        ("s3://{}/state/", []),
        ("hf://org/na", []),
        ("/", []),
        ("x\x00/", []),
    ],
)
def test_what_is_typed_is_completed(search: Any, bucket: str, typed: str, names: list[str]) -> None:
    assert sorted(search(typed.format(bucket))) == names


def test_each_tenant_finds_its_own(search: Any, bucket: str) -> None:
    assert search("", "rival") == ["team-b/secret"]
    assert search("", "stranger") == []
    assert search(f"s3://{bucket}/team-a/", "stranger") == []


def test_where_everything_is_allowed_nothing_of_the_service_is_found(
    search: Any, bucket: str
) -> None:
    assert search("", allowed_prefixes={}) == []
    assert search(f"s3://{bucket}/te", allowed_prefixes={}) == []  # the bucket has the state
    found = search(f"s3://{bucket}/team-b/", allowed_prefixes={})
    assert found == ["team-b/secret"]
    assert search(f"s3://{bucket}/state/workspaces/", allowed_prefixes={}) == []


class Endless(LocalStore):
    """A folder of models without end."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        number = 0
        while True:
            number += 1
            yield ObjectInfo(f"m{number}/config.json" if self.of_models else f"{number}", 1)

    of_models = True


def test_the_search_is_bounded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"{tmp_path}/models/"
    found = find_models(here, "acme", settings, lambda uri: Endless(Path(uri)), 3)
    assert found == FoundModels([f"{tmp_path}/models/m{n}" for n in (1, 2, 3)], complete=False)
    monkeypatch.setattr(Endless, "of_models", False)
    assert find_models(here, "acme", settings, lambda uri: Endless(Path(uri)), 3) == FoundModels(
        [], complete=False
    )
    monkeypatch.setattr(model_search, "MAX_OBJECTS", 10**9)
    clock = iter([0.0, *[1.0] * 9, *[MAX_SECONDS + 1] * 9])
    late = find_models(here, "acme", settings, lambda uri: Endless(Path(uri)), 3, clock.__next__)
    assert late == FoundModels([], complete=False)


def test_a_place_that_refuses_has_no_models(settings: Settings, tmp_path: Path) -> None:
    class Refusing(LocalStore):
        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            raise AccessDenied("no")

    found = find_models(f"{tmp_path}/x/", "acme", settings, lambda uri: Refusing(Path(uri)), 3)
    assert found == FoundModels([], complete=True)


def test_a_link_leads_nowhere_else(settings: Settings, tmp_path: Path) -> None:
    for name in ("ours/model", "theirs/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "ours/link").symlink_to(tmp_path / "theirs")
    ours = settings.model_copy(update={"allowed_prefixes": {"acme": (f"{tmp_path}/ours",)}})
    for typed, names in (("ours/", ["ours/model"]), ("ours/link/", [])):
        found = find_models(f"{tmp_path}/{typed}", "acme", ours, lambda u: LocalStore(Path(u)), 9)
        assert found.uris == [f"{tmp_path}/{name}" for name in names]


def test_the_route(client: TestClient, tiny_model: Path) -> None:
    found = client.get("/v1/models", params={"prefix": f"{tiny_model}/"})
    assert found.json() == {"data": [str(tiny_model)], "complete": True}
    assert client.get("/v1/models", params={"limit": 0}).status_code == 422
