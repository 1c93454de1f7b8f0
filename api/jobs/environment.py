"""Reads the settings of every program of the service from the environment, and reports errors.

A program with a wrong setting ends with one line that names the variable. It never shows the value:
a URL may hold a password.
"""

from __future__ import annotations

import sys
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from strucprune_core.errors import InvalidSpec
from strucprune_core.storage.s3_settings import S3Settings

_PREFIX = "STRUCPRUNE_"
CONFIG = SettingsConfigDict(
    env_prefix=_PREFIX,
    extra="ignore",
    frozen=True,
    # The text for None, where a setting has another default.
    env_parse_none_str="null",
    # Else a validation error quotes all other settings, secrets included.
    hide_input_in_errors=True,
)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        complete = bool(parts.scheme) and "://" in url
        _ = parts.port
    except ValueError:
        complete = False
    if not complete:
        # Quotes no part of it: parsing a password with a '/' makes part of it host or port.
        raise ValueError("is no URL scheme://[:password@]host[:port][/database]")
    return url


def _check_redis_url(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return _check_url(url)


def _check_s3(settings: S3Settings) -> S3Settings:
    url = settings.endpoint_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise ValueError("the endpoint URL must begin with http:// or https://")
    return settings


# URLs may hold passwords, which must not end up in logs.
RedisUrl = Annotated[str, AfterValidator(_check_redis_url), Field(repr=False)]
BrokerUrl = Annotated[str | None, AfterValidator(lambda url: url and _check_url(url))]
S3 = Annotated[S3Settings, AfterValidator(_check_s3)]

_S = TypeVar("_S", bound=BaseSettings)


def read(kind: type[_S]) -> _S:
    """The settings of this process. Ends it with one line if they are wrong."""
    try:
        return kind()
    except ValidationError as error:
        problems = [_sentence(item["loc"], item["msg"]) for item in error.errors()]
    except (SettingsError, InvalidSpec) as error:
        problems = [str(error)]
    sys.exit(f"Cannot start: {'; '.join(problems)}")


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    if not place:
        return text
    name, *inside = map(str, place)
    return ": ".join([_PREFIX + name.upper(), *inside, text])
