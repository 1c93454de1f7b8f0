"""From a URI to a store. boto3 is loaded only when an s3 URI is opened. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.local import LocalStore
from strucprune_core.storage.store import Store
from strucprune_core.storage.uri import Location, parse_uri

AddressingStyle = Literal["auto", "path", "virtual"]
ChecksumMode = Literal["when_required", "when_supported"]


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach the S3 service. Set by whoever runs the product, never by a request.

    Attributes:
        endpoint_url: None for AWS itself.
        region: Region to sign for.
        access_key_id: None leaves both keys to boto3's default chain.
        secret_access_key: As above.
        addressing_style: "path" is what most S3-compatible services need.
        checksum_mode: "when_required" works everywhere; some S3-compatible services reject the
            checksums that boto3 adds in its default mode, "when_supported".
    """

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    addressing_style: AddressingStyle = "auto"
    checksum_mode: ChecksumMode = "when_required"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> S3Settings:
        """Settings from environment variables; an empty one counts as unset.

        Read are STRUCPRUNE_S3_ENDPOINT_URL, _REGION, _ACCESS_KEY_ID, _SECRET_ACCESS_KEY,
        _ADDRESSING_STYLE and _CHECKSUM_MODE; endpoint and region fall back to AWS_ENDPOINT_URL and
        AWS_REGION or AWS_DEFAULT_REGION.

        Raises:
            InvalidSpec: a style or mode is unknown, or only one of the two keys is set.
        """

        def get(*names: str) -> str | None:
            return next((environment[name] for name in names if environment.get(name)), None)

        endpoint_url = get("STRUCPRUNE_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL")
        key_id, secret = get("STRUCPRUNE_S3_ACCESS_KEY_ID"), get("STRUCPRUNE_S3_SECRET_ACCESS_KEY")
        if (key_id is None) != (secret is None):
            raise InvalidSpec(
                "only one of the two S3 keys is set",
                remedy="Set both STRUCPRUNE_S3_ACCESS_KEY_ID and STRUCPRUNE_S3_SECRET_ACCESS_KEY, "
                "or neither to use boto3's default chain.",
            )
        style = _one_of(
            "STRUCPRUNE_S3_ADDRESSING_STYLE",
            get("STRUCPRUNE_S3_ADDRESSING_STYLE") or ("path" if endpoint_url else "auto"),
            get_args(AddressingStyle),
        )
        mode = _one_of(
            "STRUCPRUNE_S3_CHECKSUM_MODE",
            get("STRUCPRUNE_S3_CHECKSUM_MODE") or "when_required",
            get_args(ChecksumMode),
        )
        return cls(
            endpoint_url=endpoint_url,
            region=get("STRUCPRUNE_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
            access_key_id=key_id,
            secret_access_key=secret,
            addressing_style=cast(AddressingStyle, style),
            checksum_mode=cast(ChecksumMode, mode),
        )


def open_store(uri: str, s3: S3Settings | None = None) -> Store:
    """The store rooted at a URI. Makes no request and creates nothing.

    Args:
        uri: `s3://bucket/prefix`, or a local directory.
        s3: How to reach S3; None reads the environment.

    Raises:
        InvalidSpec: the URI or the settings are malformed.
    """
    location = _parse(uri)
    if location.scheme == "file":
        return LocalStore(Path(location.key))
    from strucprune_core.storage.s3 import open_s3

    return open_s3(location.bucket, location.key, s3 or S3Settings.from_environment())


def split_object(uri: str) -> tuple[str, str]:
    """URI of the parent prefix and name of the object, for a URI that names one object.

    Links on the way to a local file are the user's own and are resolved here.

    Raises:
        InvalidSpec: the URI is malformed or names no object.
    """
    location = _parse(uri)
    if location.scheme == "file":
        path = Path(location.key).resolve()
        parent, name = str(path.parent), path.name
    else:
        folder, _, name = location.key.rpartition("/")
        parent = f"s3://{location.bucket}/{folder}" if folder else f"s3://{location.bucket}"
    if not name:
        raise InvalidSpec(f"'{uri}' names no object", remedy="Give the URI of one text object.")
    return parent, name


def open_object(uri: str, s3: S3Settings | None = None) -> tuple[Store, str]:
    """The store of an object's parent prefix, and the object's key there.

    Raises:
        InvalidSpec: as `open_store` and `split_object`.
    """
    parent, name = split_object(uri)
    return open_store(parent, s3), name


def _parse(uri: str) -> Location:
    try:
        return parse_uri(uri)
    except ValueError as error:
        raise InvalidSpec(str(error)) from error


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidSpec(f"{name} is '{value}'", remedy=f"Use one of: {', '.join(allowed)}.")
    return value
