from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.open import open_object, open_store, split_object
from strucprune_core.storage.s3_settings import S3Settings


def test_local_paths_and_file_uris(tmp_path: Path) -> None:
    for uri in (str(tmp_path), f"file://{tmp_path}"):
        store = open_store(uri)
        assert isinstance(store, LocalStore)
        assert store.root == tmp_path.resolve()


@pytest.mark.parametrize("uri", ["http://x/y", "s3://UPPER/x", "s3://bucket/../x", "a\nb"])
def test_bad_uris(uri: str) -> None:
    with pytest.raises(InvalidSpec):
        open_store(uri)


def test_split_object(tmp_path: Path) -> None:
    assert split_object("s3://bucket/a/b.txt") == ("s3://bucket/a", "b.txt")
    assert split_object("s3://bucket/b.txt") == ("s3://bucket", "b.txt")
    for uri in ("s3://bucket", "/"):
        with pytest.raises(InvalidSpec, match="names no object"):
            split_object(uri)
    (tmp_path / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "elsewhere.txt").write_text("hi")
    store, key = open_object(str(tmp_path / "link.txt"))
    assert store.read(key) == b"hi"


def test_settings_from_environment() -> None:
    assert S3Settings.from_environment({}) == S3Settings()
    full = S3Settings.from_environment(
        {
            "STRUCPRUNE_S3_ENDPOINT_URL": "http://store:9000",
            "AWS_ENDPOINT_URL": "http://other",
            "STRUCPRUNE_S3_ACCESS_KEY_ID": "id",
            "STRUCPRUNE_S3_SECRET_ACCESS_KEY": "very-secret",
            "STRUCPRUNE_S3_CHECKSUM_MODE": "when_supported",
            "AWS_REGION": "eu-central-1",
        }
    )
    assert full == S3Settings(
        "http://store:9000", "eu-central-1", "id", "very-secret", "path", "when_supported"
    )
    assert "very-secret" not in repr(full)
    fallback = S3Settings.from_environment({"AWS_ENDPOINT_URL": "http://other"})
    assert fallback.endpoint_url == "http://other"


@pytest.mark.parametrize(
    "environment",
    [
        {"STRUCPRUNE_S3_CHECKSUM_MODE": "never"},
        {"STRUCPRUNE_S3_ADDRESSING_STYLE": "odd"},
        {"STRUCPRUNE_S3_ACCESS_KEY_ID": "id"},
    ],
)
def test_bad_settings(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidSpec):
        S3Settings.from_environment(environment)


def test_a_malformed_endpoint_is_typed() -> None:
    with pytest.raises(InvalidSpec):
        open_store("s3://bucket/x", S3Settings(endpoint_url="not a url"))


def test_what_the_api_imports_brings_neither_torch_nor_boto3() -> None:
    code = (
        "import sys, strucprune_core.plan.estimate, strucprune_core.plan.inspection\n"
        "sys.exit(bool({'torch', 'boto3', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
