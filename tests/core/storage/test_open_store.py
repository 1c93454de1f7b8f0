from __future__ import annotations

import re
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


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3:/bucket/key", "begins with two slashes"),
        ("s3:bucket", "begins with two slashes"),
        ("S3://bucket/key", "scheme 'S3' is not supported; use s3://bucket/key"),
        ("file://host/models/m", "file:///directory/name"),
        ("file://~/m", "file:///directory/name"),
        ("file:m", "file:///directory/name"),
        ("file://", "file:///directory/name"),
        ("$HOME/m", "shell variable that was not replaced"),
        ("${HOME}/m", "shell variable that was not replaced"),
        ("~nobody-of-this-name/m", "home directory of a user who does not exist"),
        ("s3://bucket/a/%2E%2e/b", "'..' segments"),
        ("s3://bucket/a\\b", "backslash"),
        ("", "empty"),
    ],
)
def test_what_would_name_another_place(uri: str, reason: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(reason)):
        open_store(uri)


@pytest.mark.parametrize("uri", ["~/models/m", "~", "file:///{home}/models/m", "./~/m", "a~b/m"])
def test_the_home_directory(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    expected = {
        "~/models/m": home / "models/m",
        "~": home,
        "file:///{home}/models/m": home / "models/m",
        "./~/m": tmp_path / "~/m",
        "a~b/m": tmp_path / "a~b/m",
    }[uri]
    store = open_store(uri.replace("/{home}", str(home)))
    assert isinstance(store, LocalStore)
    assert store.root == expected
    assert split_object(uri.replace("/{home}", str(home))) == (str(expected.parent), expected.name)


def test_file_uris_of_this_machine(tmp_path: Path) -> None:
    for uri in (f"file://localhost{tmp_path}", f"file:{tmp_path}", f"file://{tmp_path}/a%20b"):
        store = open_store(uri)
        assert isinstance(store, LocalStore)
        assert store.root == (tmp_path / "a%20b" if uri.endswith("b") else tmp_path)


def test_split_object(tmp_path: Path) -> None:
    assert split_object("s3://bucket/a/b.txt") == ("s3://bucket/a", "b.txt")
    assert split_object("s3://bucket/b.txt") == ("s3://bucket", "b.txt")
    assert split_object("s3://b-1/a#b/50 %?.txt") == ("s3://b-1/a#b", "50 %?.txt")
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
        "http://store:9000", "eu-central-1", "id", "very-secret", None, "when_supported"
    )
    assert "very-secret" not in repr(full)
    # botocore reads it, after AWS_ENDPOINT_URL_S3.
    assert S3Settings.from_environment({"AWS_ENDPOINT_URL": "http://other"}) == S3Settings()


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
