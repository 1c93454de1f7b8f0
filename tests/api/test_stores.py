from __future__ import annotations

import pytest

from api.stores import Stores
from strucprune_core.errors import InvalidSpec, StorageUnavailable
from strucprune_core.storage.s3_settings import S3Settings
from tests.support.hub_server import Hub


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket/../key", "gs://bucket"])
def test_a_malformed_uri_is_an_invalid_spec(uri: str) -> None:
    with pytest.raises(InvalidSpec):
        Stores(S3Settings()).open(uri)


def test_places_of_a_hub(hub: Hub) -> None:
    repo = hub.add("acme/tiny", {"sub/x": b"0123"})
    stores = Stores(S3Settings())
    commit = repo.branches["main"]
    assert stores.pinned("hf://acme/tiny/sub") == f"hf://acme/tiny@{commit}/sub"
    assert stores.open(f"hf://acme/tiny@{commit}/sub").read("x", 1, 2) == b"12"
    assert stores.pinned("s3://bucket/x") == "s3://bucket/x"
    with pytest.raises(InvalidSpec):
        stores.pinned("hf://tiny")
    began = len(hub.requests)
    hub.faults = lambda method, path: (429, {"Retry-After": "60"})
    with pytest.raises(StorageUnavailable, match="for 60 s"):  # A client does not wait for it.
        stores.pinned("hf://acme/tiny")
    assert len(hub.requests) == began + 1
