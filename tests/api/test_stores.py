from __future__ import annotations

import pytest

from api.stores import Stores
from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.s3_settings import S3Settings


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket/../key", "gs://bucket"])
def test_a_malformed_uri_is_an_invalid_spec(uri: str) -> None:
    with pytest.raises(InvalidSpec):
        Stores(S3Settings()).open(uri)
