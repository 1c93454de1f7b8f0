"""What environment and config files say of S3 means what it means to every AWS tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import (
    AccessDenied,
    CredentialsExpired,
    InvalidSpec,
    StorageError,
    StorageUnavailable,
    StrucPruneError,
)
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3 import S3Store
from tests.support.tls_proxy import TlsProxy, make_certificate

CONFIG = """
[default]
region = eu-west-3
[profile plain]
region = eu-north-1
endpoint_url = http://plain.test:1
s3 =
  addressing_style = virtual
[profile by-service]
services = own
[services own]
s3 =
  endpoint_url = http://service.test:2
[profile process]
credential_process = /bin/false
[profile half]
aws_access_key_id = x
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of this process without any S3 setting but a config file."""
    for name in os.environ:
        if name.startswith(("AWS_", "STRUCPRUNE_S3_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    (tmp_path / "config").write_text(CONFIG)
    return {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def opened(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], uri: str) -> S3Store:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(uri)
    assert isinstance(store, S3Store)
    return store


BOTH = {"AWS_ENDPOINT_URL": "http://all.test:3", "AWS_ENDPOINT_URL_S3": "http://s3.test:4"}
AWS = "https://s3.eu-west-3.amazonaws.com"


@pytest.mark.parametrize(
    ("given", "endpoint", "region", "style"),
    [
        ({}, AWS, "eu-west-3", None),
        ({"AWS_ENDPOINT_URL": "http://all.test:3"}, "http://all.test:3", "eu-west-3", "path"),
        (BOTH, "http://s3.test:4", "eu-west-3", "path"),
        (
            {**BOTH, "STRUCPRUNE_S3_ENDPOINT_URL": "http://own.test:5"},
            "http://own.test:5",
            "eu-west-3",
            "path",
        ),
        ({**BOTH, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, AWS, "eu-west-3", None),
        ({"AWS_PROFILE": "plain"}, "http://plain.test:1", "eu-north-1", "virtual"),
        ({"AWS_PROFILE": "by-service"}, "http://service.test:2", "us-east-1", "path"),
        (
            {"AWS_DEFAULT_REGION": "eu-west-1"},
            "https://s3.eu-west-1.amazonaws.com",
            "eu-west-1",
            None,
        ),
        (
            {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-west-2"},
            "https://s3.eu-west-2.amazonaws.com",
            "eu-west-2",
            None,
        ),
        (
            {"AWS_REGION": "eu-west-2", "STRUCPRUNE_S3_REGION": "eu-west-4"},
            "https://s3.eu-west-4.amazonaws.com",
            "eu-west-4",
            None,
        ),
        (
            {**BOTH, "STRUCPRUNE_S3_ADDRESSING_STYLE": "virtual"},
            "http://s3.test:4",
            "eu-west-3",
            "virtual",
        ),
    ],
)
def test_what_is_reached_and_how(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    given: dict[str, str],
    endpoint: str,
    region: str,
    style: str | None,
) -> None:
    meta = opened(monkeypatch, {**environment, **given}, "s3://some-bucket/x").client.meta
    assert (meta.endpoint_url, meta.region_name) == (endpoint, region)
    assert (meta.config.s3 or {}).get("addressing_style") == style


@pytest.mark.parametrize(
    ("given", "kind", "reason", "remedy"),
    [
        ({"AWS_PROFILE": "gone"}, InvalidSpec, r"profile \(gone\) could not be", "AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "store:9000"}, InvalidSpec, "store:9000", "AWS_ENDPOINT_URL"),
        ({"AWS_REGION": "not a region"}, InvalidSpec, "not a region", "AWS"),
        ({"AWS_PROFILE": "process"}, CredentialsExpired, "custom-process", "AWS_PROFILE"),
        ({"AWS_PROFILE": "half"}, AccessDenied, "aws_secret_access_key", "AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": "x"}, AccessDenied, "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ({"AWS_CA_BUNDLE": "/no/such"}, InvalidSpec, "/no/such, cannot be read", "AWS_CA_BUNDLE"),
        ({"AWS_CA_BUNDLE": __file__}, InvalidSpec, "cannot be read", "PEM"),
        ({"AWS_CONFIG_FILE": __file__}, InvalidSpec, "parse config file", "config files"),
    ],
)
def test_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    given: dict[str, str],
    kind: type[StrucPruneError],
    reason: str,
    remedy: str,
) -> None:
    with pytest.raises(kind, match=reason) as caught:
        opened(monkeypatch, {**environment, **given}, "s3://some-bucket/x")
    assert remedy in str(caught.value.remedy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command", [["inspect", "s3://some-bucket/model"], ["verify", "s3://b-b/m"]]
)
def test_the_command_says_it_in_a_line(environment: dict[str, str], command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "strucprune_core.commands.main", *command, "--json"],
        env={**os.environ, **environment, "AWS_PROFILE": "gone"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    assert error["code"] == "invalid_spec"
    assert "AWS_PROFILE" in error["remedy"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def keys_of(server: S3Server) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
    }


@pytest.mark.services
def test_an_authority_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    s3_server: S3Server,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    bucket = f"tls-{uuid4().hex[:8]}"
    s3_server.create_bucket(bucket)
    with TlsProxy(s3_server.port, *certificate) as proxy:
        endpoint = {"AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{proxy.port}"}
        given = {**environment, **keys_of(s3_server), **endpoint}
        monkeypatch.setattr("strucprune_core.storage.s3.REQUEST_ATTEMPTS", 1)
        untrusting = opened(monkeypatch, given, f"s3://{bucket}/x")
        with pytest.raises(StorageError, match="certificate is not trusted") as caught:
            untrusting.put("k", b"1")
        assert not caught.value.retryable
        assert "AWS_CA_BUNDLE" in str(caught.value.remedy)

        trusting = {**given, "AWS_CA_BUNDLE": str(certificate[0])}
        store = opened(monkeypatch, trusting, f"s3://{bucket}/x")
        store.put("k", b"1")
        assert bytes(store.read("k")) == b"1"
        (tmp_path / "large").write_bytes(bytes(40 << 20))  # in parts, by several threads
        store.upload("large", tmp_path / "large")
        assert {info.key for info in store.list()} == {"k", "large"}

        other, key = make_certificate(tmp_path, "store.test")
        with TlsProxy(s3_server.port, other, key) as misnamed:
            wrong = {"AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{misnamed.port}"}
            store = opened(
                monkeypatch, {**trusting, **wrong, "AWS_CA_BUNDLE": str(other)}, f"s3://{bucket}/x"
            )
            with pytest.raises(StorageError, match=r"not trusted.*'127\.0\.0\.1'"):
                store.stat("k")


@pytest.mark.services
def test_proxies(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], s3_server: S3Server
) -> None:
    monkeypatch.setattr("strucprune_core.storage.s3.REQUEST_ATTEMPTS", 1)
    given = {
        **environment,
        **keys_of(s3_server),
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
        "HTTP_PROXY": "http://127.0.0.1:1",
    }
    with pytest.raises(StorageUnavailable, match="proxy") as caught:
        opened(monkeypatch, given, "s3://some-bucket/x").stat("k")
    assert "NO_PROXY" in str(caught.value.remedy)
    around = opened(monkeypatch, {**given, "NO_PROXY": "127.0.0.1"}, "s3://some-bucket/x")
    assert around.stat("k") is None
