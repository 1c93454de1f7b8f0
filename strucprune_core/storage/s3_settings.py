"""How to reach the S3 service. No boto3, no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from strucprune_core.errors import InvalidSpec

AddressingStyle = Literal["auto", "path", "virtual"]
ChecksumMode = Literal["when_required", "when_supported"]


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach the S3 service. Set by operators, never by a request.

    botocore decides what is None here: AWS_ENDPOINT_URL_S3 before AWS_ENDPOINT_URL, AWS_PROFILE,
    the AWS config and credentials files, roles, AWS_CA_BUNDLE, HTTPS_PROXY and NO_PROXY all mean
    what they mean to every AWS tool.

    Attributes:
        endpoint_url: None leaves it to botocore, whose last choice is AWS itself.
        region: Region to sign for; None leaves it to botocore, then us-east-1.
        access_key_id: None leaves both keys to botocore.
        secret_access_key: As above.
        addressing_style: Most S3-compatible services need "path". None uses the AWS config's, else
            "auto" for AWS and "path" for others.
        checksum_mode: "when_required" works everywhere; some S3-compatible services reject the
            checksums that boto3 adds in its default mode, "when_supported".
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    addressing_style: AddressingStyle | None = None
    checksum_mode: ChecksumMode = "when_required"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> S3Settings:
        """Settings from environment variables; an empty one counts as unset.

        It reads STRUCPRUNE_S3_ENDPOINT_URL, _REGION, _ACCESS_KEY_ID, _SECRET_ACCESS_KEY,
        _ADDRESSING_STYLE and _CHECKSUM_MODE; and AWS_REGION, which other AWS tools read before
        AWS_DEFAULT_REGION, and botocore ignores.

        Raises:
            InvalidSpec: a style or mode is unknown, or only one of the two keys is set.
        """

        def get(*names: str) -> str | None:
            return next((environment[name] for name in names if environment.get(name)), None)

        key_id, secret = get("STRUCPRUNE_S3_ACCESS_KEY_ID"), get("STRUCPRUNE_S3_SECRET_ACCESS_KEY")
        if (key_id is None) != (secret is None):
            raise InvalidSpec(
                "only one of the two S3 keys is set",
                remedy="Set both STRUCPRUNE_S3_ACCESS_KEY_ID and STRUCPRUNE_S3_SECRET_ACCESS_KEY, "
                "or neither to use boto3's default chain.",
            )
        style = get("STRUCPRUNE_S3_ADDRESSING_STYLE")
        if style is not None:
            _one_of("STRUCPRUNE_S3_ADDRESSING_STYLE", style, get_args(AddressingStyle))
        mode = _one_of(
            "STRUCPRUNE_S3_CHECKSUM_MODE",
            get("STRUCPRUNE_S3_CHECKSUM_MODE") or "when_required",
            get_args(ChecksumMode),
        )
        return cls(
            endpoint_url=get("STRUCPRUNE_S3_ENDPOINT_URL"),
            region=get("STRUCPRUNE_S3_REGION", "AWS_REGION"),
            access_key_id=key_id,
            secret_access_key=secret,
            addressing_style=cast(AddressingStyle | None, style),
            checksum_mode=cast(ChecksumMode, mode),
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidSpec(f"{name} is '{value}'", remedy=f"Use one of: {', '.join(allowed)}.")
    return value
