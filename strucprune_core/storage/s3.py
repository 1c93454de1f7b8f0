"""A store on an S3-compatible service: with `s3_connection` the only file that knows boto3."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError

from strucprune_core.errors import (
    AccessDenied,
    CredentialsExpired,
    InvalidSpec,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from strucprune_core.storage.keys import check_key, check_prefix
from strucprune_core.storage.s3_connection import give_up_slow_answers
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.s3_transfer import RetriesExceededError, download, upload
from strucprune_core.storage.store import ObjectInfo, Tick, ignore_bytes

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60
# With exponential waits of at most 1, 2 and 4 s: a short failure is bridged, an outage reported
# within seconds.
REQUEST_ATTEMPTS = 4
# botocore retries requests, but not a body that breaks off while it is being read.
BODY_ATTEMPTS = 3
CONFLICT_ATTEMPTS = 5

_READ_BYTES = 2**20
_PROBE = "strucprune-write-check"

_ABSENT = {"NoSuchKey", "NoSuchBucket", "NotFound", "404"}
_REFUSED = {
    "403",
    "401",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
# Codes for temporary credentials that have expired.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_BUSY = {
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_WRONG_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_CHECK_KEYS = "Check the access key, its secret, and that its policy covers this prefix."
_REFUSALS = {
    "RequestTimeTooSkewed": "Set this machine's clock: it differs from the store's.",
}
# Raised by botocore if there are no credentials, or their source fails.
_NO_CREDENTIALS = (
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
# botocore raises `SSLError` for a broken connection too: these words tell an untrusted one.
_NOT_TRUSTED = ("CERTIFICATE_VERIFY_FAILED", "doesn't match")
_DEFAULT_REGION = "us-east-1"
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".amazonaws.eu")
_CONFIGURATION = (
    "Correct STRUCPRUNE_S3_ENDPOINT_URL, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_PROFILE or the "
    "AWS config files, whichever it names."
)
_TOO_SHORT = "It is incomplete, or was written again meanwhile: copy it again."
_NOT_COMPATIBLE = "The endpoint, or a proxy before it, does not do what S3 does: use another one."
_REMEDY = "Check that the S3 endpoint is right and answers."
# Headers that every S3 service sends with an object.
_OF_AN_OBJECT = frozenset({"content-length", "etag", "last-modified", "date"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")
_BROKEN_BODY = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPClientError)


@dataclass(frozen=True, slots=True)
class S3Store:
    """Objects of a bucket below a key prefix.

    Attributes:
        client: A boto3 S3 client (thread-safe, may be shared).
        bucket: The bucket's name.
        prefix: Key prefix without slashes at its ends; "" is the whole bucket.
    """

    client: Any = field(repr=False)
    bucket: str
    prefix: str = ""

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def stat(self, key: str) -> ObjectInfo | None:
        """Size of an object, or None if it does not exist (or the bucket does not)."""
        try:
            with _translated(self._name(key)):
                head = self.client.head_object(Bucket=self.bucket, Key=self._key(key))
        except ObjectNotFound:
            return None
        return ObjectInfo(key, _size(head, self._name(key)), head.get("ETag", ""))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        """Exactly `length` bytes from offset `start` (to the end if None).

        Raises:
            ObjectNotFound: no such object.
            StorageError: the object is shorter than `start + length`.
        """
        for _ in range(BODY_ATTEMPTS - 1):
            try:
                return self._read_once(key, start, length)
            except _BROKEN_BODY:
                continue
        with _translated(self._name(key)):
            return self._read_once(key, start, length)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`. One request per 1000 keys.

        The order is the service's: key order with AWS, but SeaweedFS lists directory by directory
        ("a/b" before "a.txt"). Sorting here would mean listing everything before the first answer.
        """
        root = f"{self.prefix}/" if self.prefix else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=root + check_prefix(prefix)
        )
        with _translated(self._name(prefix)):
            for page in pages:
                # boto3 takes any answer without keys for an empty bucket, be it a web page or a
                # listing that broke off.
                if page.get("Name") != self.bucket:
                    raise _no_answer(self._name(prefix))
                for item in page.get("Contents", ()):
                    # Consoles mark "folders" by empty objects that end in a slash: skipped.
                    if not item["Key"].endswith("/"):
                        key = item["Key"].removeprefix(root)
                        yield ObjectInfo(key, int(item["Size"]), item["ETag"])

    def check_writable(self) -> None:
        """Raise what a write below the root would raise.

        A multipart upload needs the same permission as any write. It is not an object until it is
        completed, and this one never is.
        """
        key = self._key(_PROBE)
        with _translated(self.uri):
            begun = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)
        with suppress(ClientError):  # The permission to abort it is not needed to write.
            self.client.abort_multipart_upload(
                Bucket=self.bucket, Key=key, UploadId=begun["UploadId"]
            )

    def remove_unfinished(self, keys: Collection[str]) -> None:
        """Abort uploads of these objects that killed writers left. Only where no writer is at work.

        Without the permission to list uploads, the bucket's rules have to remove them.
        """
        names = {self._key(key) for key in keys}
        pages = self.client.get_paginator("list_multipart_uploads")
        with suppress(AccessDenied), _translated(self.uri):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix):
                for begun in page.get("Uploads", ()):
                    if begun["Key"] in names:
                        self.client.abort_multipart_upload(
                            Bucket=self.bucket, Key=begun["Key"], UploadId=begun["UploadId"]
                        )

    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new, never a part."""
        with _translated(self._name(key)):
            self.client.put_object(**self._whole(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists. True if this call wrote it; one racer wins.

        A write whose answer got lost is repeated, and the object then exists: the result is False
        although the bytes are ours. Callers that must know compare what is stored.
        """
        for _ in range(CONFLICT_ATTEMPTS):
            outcome = self._put_new(key, data)
            if outcome is not None:
                return outcome
        raise StorageUnavailable(
            f"{self._name(key)}: other writers write this object at the same time",
            remedy="Try again.",
        )

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write a local file as an object, atomically, in bounded memory."""
        with _translated(self._name(key)):
            upload(self.client, path, self.bucket, self._key(key), tick)

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        """Write an object to a local file, in bounded memory."""
        with _translated(self._name(key)):
            download(self.client, self.bucket, self._key(key), path, tick)

    def delete(self, key: str) -> None:
        """Remove an object; no error if it does not exist."""
        try:
            with _translated(self._name(key)):
                self.client.delete_object(Bucket=self.bucket, Key=self._key(key))
        except ObjectNotFound:
            return

    def child(self, prefix: str) -> S3Store:
        """The store rooted at `prefix` under this one."""
        return S3Store(self.client, self.bucket, self._key(prefix.rstrip("/")))

    def local_path(self, key: str) -> Path | None:
        """None: the objects lie on another machine."""
        check_key(key)
        return None

    def presign(self, key: str, expires_seconds: int) -> str:
        """A URL that lets anyone GET the object until it expires. Makes no request."""
        with _translated(self._name(key)):
            url: str = self.client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": self._key(key)},
                ExpiresIn=expires_seconds,
            )
        return url

    def _put_new(self, key: str, data: bytes) -> bool | None:
        """True if written, False if present, None if the service wants another try."""
        with _translated(self._name(key)):
            try:
                self.client.put_object(**self._whole(key, data), IfNoneMatch="*")
            except ClientError as error:
                status = _status(error)
                if status == 412:
                    return False
                if status == 409:  # ConditionalRequestConflict: another write is in flight
                    return None
                raise
        return True

    def _whole(self, key: str, data: bytes) -> dict[str, Any]:
        """Arguments of a write that is refused unless all of its bytes arrive.

        SeaweedFS stores an empty object for a request that breaks off before its body. The retry
        would not overwrite it, and a commit would stay unreadable for ever.
        """
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        md5 = base64.b64encode(digest).decode()
        return {"Bucket": self.bucket, "Key": self._key(key), "Body": data, "ContentMD5": md5}

    def _read_once(self, key: str, start: int, length: int | None) -> bytearray:
        name = self._name(key)
        if length == 0:  # HTTP has no empty range; the object must exist all the same.
            return self._read_nothing(key, start)
        end = "" if length is None else start + length - 1
        ranged = {} if (start == 0 and length is None) else {"Range": f"bytes={start}-{end}"}
        try:
            with _translated(name):
                answer = self.client.get_object(Bucket=self.bucket, Key=self._key(key), **ranged)
        except _RangeError as error:
            raise StorageError(
                f"{name} is shorter than {start + (length or 0)} bytes", remedy=_TOO_SHORT
            ) from error
        # Its own context manager returns the stream beneath, whose errors are another library's.
        with closing(answer["Body"]) as body:
            size = _size(answer, name)
            _check_range(name, answer, start, length, size)
            data = bytearray(size)
            _fill(body, data, name)
        return data

    def _read_nothing(self, key: str, start: int) -> bytearray:
        info = self.stat(key)
        if info is None:
            raise ObjectNotFound(f"{self._name(key)} does not exist")
        if info.size_bytes < start:
            raise StorageError(
                f"{self._name(key)} is shorter than {start} bytes", remedy=_TOO_SHORT
            )
        return bytearray()

    def _key(self, key: str) -> str:
        check_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _name(self, key: str) -> str:
        return f"{self.uri}/{key}"


def open_s3(bucket: str, prefix: str, settings: S3Settings) -> S3Store:
    """A store on `s3://bucket/prefix`. Makes no request, except to a source of credentials.

    Raises:
        InvalidSpec: the settings, or those that botocore reads from environment and config files,
            are invalid.
        AccessDenied: the credentials are incomplete, or their source fails.
    """
    # Own sessions: the default ones are globals, and not thread-safe.
    core = botocore.session.Session()
    try:
        _check_ca_bundle(core.get_config_variable("ca_bundle"))
        client = _client(core, settings)
    except CredentialRetrievalError as error:
        raise _not_renewed(f"s3://{bucket}", error) from error
    except _NO_CREDENTIALS as error:
        raise _no_credentials("S3", error) from error
    except (BotoCoreError, ValueError) as error:  # ValueError: a malformed endpoint.
        raise InvalidSpec(f"the S3 settings do not work: {error}", remedy=_CONFIGURATION) from error
    return S3Store(client, bucket, prefix)


def _check_ca_bundle(path: str | None) -> None:
    """Checked here: botocore would take the error for a failed request, and repeat that."""
    if path is None or Path(path).is_dir():
        return
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one.
        reason = error.strerror or str(error)
        raise InvalidSpec(
            f"the file of trusted certificates, {path}, cannot be read: {reason}",
            remedy="Correct AWS_CA_BUNDLE, or ca_bundle in the AWS config file: a PEM file.",
        ) from error


def _client(core: Any, settings: S3Settings) -> Any:
    session = boto3.session.Session(botocore_session=core)
    style = settings.addressing_style or core.get_scoped_config().get("s3", {}).get(
        "addressing_style"
    )
    client = _client_of_style(session, settings, style)
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    if style is None and not host.endswith(_AWS_HOSTS):
        client = _client_of_style(session, settings, "path")
    # Before it sends a file, botocore asks the server to agree ("Expect: 100-continue"). If the
    # connection breaks within the answer, it loops for ever.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    give_up_slow_answers(client)
    return client


def _client_of_style(session: Any, settings: S3Settings, style: str | None) -> Any:
    return session.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region or session.region_name or _DEFAULT_REGION,
        aws_access_key_id=settings.access_key_id,
        aws_secret_access_key=settings.secret_access_key,
        config=Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
            s3={"addressing_style": style} if style else None,
            request_checksum_calculation=settings.checksum_mode,
            response_checksum_validation=settings.checksum_mode,
        ),
    )


def _check_range(
    name: str, answer: dict[str, Any], start: int, length: int | None, size: int
) -> None:
    """Check the range of an answer: a server that ignores Range would give the wrong bytes."""
    if start == 0 and length is None:
        return
    if answer["ResponseMetadata"]["HTTPStatusCode"] != HTTPStatus.PARTIAL_CONTENT:
        raise StorageError(
            f"{name}: the store ignored the byte range asked for", remedy=_NOT_COMPATIBLE
        )
    match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    first, last = map(int, match.groups()) if match else (-1, -1)
    if match is None or last - first + 1 != size:
        raise _no_answer(name)  # It broke off; see `_size`.
    if first != start:
        raise StorageError(
            f"{name}: the store answered another byte range than was asked for",
            remedy=_NOT_COMPATIBLE,
        )
    if length is not None and size != length:
        raise StorageError(
            f"{name} holds {size} bytes from offset {start}, but {length} were asked for",
            remedy=_TOO_SHORT,
        )


def _size(answer: Any, name: str) -> int:
    """The length of an answer's body, if its head is complete.

    If an answer breaks off in its head, the client library takes what has arrived for the whole,
    even half a number. The last of several headers may be cut; those before it are whole.
    """
    if not answer["ResponseMetadata"]["HTTPHeaders"].keys() >= _OF_AN_OBJECT:
        raise _no_answer(name)
    return int(answer["ContentLength"])


def _no_answer(name: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"{name}: the endpoint's answer is not S3, or broke off", remedy=_REMEDY
    )


def _fill(body: Any, data: bytearray, name: str) -> None:
    view, filled = memoryview(data), 0
    while filled < len(data):
        piece = body.read(min(_READ_BYTES, len(data) - filled))
        if not piece:
            raise StorageUnavailable(f"{name}: the answer ended {len(data) - filled} bytes early")
        view[filled : filled + len(piece)] = piece
        filled += len(piece)


class _RangeError(StorageError):
    """The byte range lies beyond the object (HTTP 416)."""


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn boto3's exceptions into the typed errors of the store protocol."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, name) from error
    except CredentialRetrievalError as error:  # The program or service that renews them failed.
        raise _not_renewed(name, error) from error
    except _NO_CREDENTIALS as error:
        raise _no_credentials(name, error) from error
    except RetriesExceededError as error:  # The body of a download kept breaking off.
        raise StorageUnavailable(f"{name}: {error.last_exception}") from error
    except ParamValidationError as error:
        raise StorageError(f"{name}: {error}") from error
    except BotoCoreError as error:
        raise _from_client(error, name) from error
    except RecursionError as error:  # botocore asks for the region, and that is redirected too.
        raise StorageError(
            f"{name}: the endpoint redirects every request",
            remedy="Correct the endpoint's URL: https:// or http://, name and port.",
        ) from error
    except (ResponseParserError, ValueError) as error:  # ValueError: half a number, half a date.
        raise _no_answer(name) from error
    except OSError as error:  # The local file of an upload or download.
        raise StorageUnavailable(
            f"{name}: the local file of the transfer failed: {error}",
            remedy="Check that disk and its free space, then try again.",
        ) from error


def _not_renewed(name: str, error: CredentialRetrievalError) -> CredentialsExpired:
    # Its message is not shown: the output of a program may hold secrets.
    provider = error.kwargs.get("provider", "their source")
    return CredentialsExpired(
        f"{name}: {provider} gives no credentials for the store",
        remedy="Correct that source (credential_process of the AWS_PROFILE, a role). Then run the "
        "job again: it continues from its workspace.",
    )


def _no_credentials(name: str, error: BotoCoreError) -> AccessDenied:
    return AccessDenied(
        f"{name}: there are no usable S3 credentials ({error})",
        remedy="Set STRUCPRUNE_S3_ACCESS_KEY_ID and STRUCPRUNE_S3_SECRET_ACCESS_KEY, or any source "
        "that boto3 reads (AWS_ACCESS_KEY_ID, AWS_PROFILE); if a login (`aws sso login`) has "
        "expired, log in again.",
    )


def _from_client(error: BotoCoreError, name: str) -> StorageError:
    """The typed error for a request that got no answer."""
    if isinstance(error, SSLError) and any(words in str(error) for words in _NOT_TRUSTED):
        return StorageError(
            f"{name}: the endpoint's certificate is not trusted: {error}",
            remedy="Name the file with the certificate of its authority in AWS_CA_BUNDLE; if the "
            "certificate is for another name or has expired, correct that.",
        )
    if isinstance(error, ProxyConnectionError):
        return StorageUnavailable(
            f"{name}: {error}",
            remedy="Check HTTPS_PROXY and HTTP_PROXY; NO_PROXY names hosts to reach without.",
        )
    return StorageUnavailable(f"{name}: {error}", remedy=_REMEDY)


def _from_answer(error: ClientError, name: str) -> StorageError:
    """The typed error for an error that the service answered."""
    details = error.response.get("Error", {})
    code, status = str(details.get("Code", "")), _status(error)
    if code in _WRONG_REGION or status == 301:
        return StorageError(
            f"{name}: the bucket is in another region ({code}: {details.get('Message', '')})",
            remedy="Set the bucket's region in AWS_REGION or STRUCPRUNE_S3_REGION.",
        )
    if code in _EXPIRED:
        return CredentialsExpired(f"{name}: the credentials for the store have expired ({code})")
    if code in _REFUSED or status in (401, 403):
        return AccessDenied(
            f"{name}: the store refused access ({code})", remedy=_REFUSALS.get(code, _CHECK_KEYS)
        )
    if code == "NoSuchBucket":
        return ObjectNotFound(f"{name}: there is no such bucket")
    if code in _ABSENT or status == 404:
        return ObjectNotFound(f"{name} does not exist")
    if code in _BUSY or status >= 500 or status == 429:
        return StorageUnavailable(f"{name}: the store cannot answer now ({code})")
    if status == 416 or code == "InvalidRange":
        return _RangeError(f"{name}: the byte range lies beyond its end")
    return StorageError(f"{name}: the store answered {status} {code}: {details.get('Message', '')}")
