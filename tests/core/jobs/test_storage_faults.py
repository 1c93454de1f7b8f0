"""Whole jobs on S3 whose answers come slowly, break off, or are refused for a while."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from embedded.s3 import S3Server
from strucprune_core.errors import CredentialsExpired, StorageUnavailable
from strucprune_core.pipeline import prune
from strucprune_core.run.progress import Phase, Progress, ProgressSink, ignore_progress
from strucprune_core.spec import JobSpec
from strucprune_core.storage import s3, s3_connection
from strucprune_core.storage.open import open_store
from strucprune_core.storage.s3_settings import S3Settings
from strucprune_core.storage.store import Store
from tests.core.jobs.tiny_job import REPORTS, checkpoint_of, run, tiny_spec
from tests.support.s3_gate import S3Gate
from tests.support.tiny_llama import make_tiny_llama

pytestmark = pytest.mark.services


class Remote:
    """A job whose model, text, workspace and output are in a bucket behind a gate."""

    def __init__(self, root: Path, server: S3Server, gate: S3Gate, text_file: Path) -> None:
        self.root, self.gate, self.text_file = root, gate, text_file
        self.bucket = f"faults-{uuid4().hex[:8]}"
        server.create_bucket(self.bucket)
        self.settings = S3Settings(
            gate.url,
            access_key_id=server.access_key_id,
            secret_access_key=server.secret_access_key,
            addressing_style="path",
        )
        self.model = make_tiny_llama(root / "model", layers=2)
        store = self.open(f"s3://{self.bucket}")
        for path in (*self.model.iterdir(), text_file):
            store.upload(f"in/{path.name}", path)

    def open(self, uri: str) -> Store:
        return open_store(uri, self.settings)

    def spec(self) -> JobSpec:
        local = tiny_spec(self.model, self.text_file, self.root / "out", evaluation=None)
        uri = f"s3://{self.bucket}"
        document = local.model_dump(mode="json")
        document["model"]["uri"] = f"{uri}/in"
        document["output"]["uri_prefix"] = f"{uri}/out"
        document["calibration"]["uri"] = f"{uri}/in/{self.text_file.name}"
        return JobSpec.model_validate(document)

    def prune(
        self,
        open_uri: Callable[[str], Store] | None = None,
        progress: ProgressSink = ignore_progress,
    ) -> None:
        open_uri = open_uri or self.open
        prune(
            self.spec(),
            workspace=open_uri(f"s3://{self.bucket}/workspace"),
            scratch=self.root / "scratch",
            open_store=open_uri,
            progress=progress,
        )

    def published(self) -> dict[str, bytes]:
        out = self.open(f"s3://{self.bucket}/out")
        return {info.key: bytes(out.read(info.key)) for info in out.list()}

    def undisturbed(self) -> dict[str, bytes]:
        local = tiny_spec(self.model, self.text_file, self.root / "out", evaluation=None)
        run(local, self.root / "undisturbed")
        return checkpoint_of(self.root / "out")

    def check(self) -> None:
        """What was published is what an undisturbed job publishes."""
        published = self.published()
        assert "strucprune.json" in published
        checkpoint = {name: data for name, data in published.items() if name not in REPORTS}
        assert checkpoint == self.undisturbed()


@pytest.fixture
def remote(
    tmp_path: Path, s3_server: S3Server, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Remote]:
    monkeypatch.setattr(s3, "READ_TIMEOUT_SECONDS", 1)
    with S3Gate(s3_server).opened() as gate:
        yield Remote(tmp_path, s3_server, gate, text_file)


@pytest.mark.parametrize(
    ("method", "within", "act", "times"),
    [
        ("GET", "/in/model", "trickle", 2),
        ("GET", "/in/model", "cut answer", 2),
        ("GET", "list-type=2", "trickle", 1),
        ("GET", "/in/model", "silence", 1),
        ("PUT", "/workspace/", "cut request", 2),
        ("PUT", "/out/model", "cut request", 2),
        ("PUT", "/out/model", "silence", 1),
        ("PUT", "/workspace/", "slow down", 3),
        ("GET", "/in/model", "slow down", 3),
    ],
)
def test_a_job_goes_through(remote: Remote, method: str, within: str, act: str, times: int) -> None:
    fault = remote.gate.break_next(method, within, act, times)  # type: ignore[arg-type]
    remote.prune()
    assert fault.met == times
    remote.check()


@pytest.mark.parametrize(
    ("method", "within", "act"),
    [
        ("GET", "/in/model", "trickle"),
        ("GET", "/in/model", "cut answer"),
        ("PUT", "/workspace/", "silence"),
        ("PUT", "/out/model", "slow down"),
    ],
)
def test_a_store_that_stays_so_ends_the_job_for_now(
    remote: Remote, method: str, within: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "REQUEST_ATTEMPTS", 2)
    fault = remote.gate.break_next(method, within, act, 1000)  # type: ignore[arg-type]
    with pytest.raises(StorageUnavailable) as caught:
        remote.prune()
    assert caught.value.retryable
    fault.times = 0
    assert not [name for name in remote.published() if name == "strucprune.json"]
    remote.prune()
    remote.check()


def test_a_slow_line_is_no_fault(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that come as fast as they must give the answer more time."""
    monkeypatch.setattr(s3_connection, "LEAST_BYTES_PER_SECOND", 10)
    fault = remote.gate.break_next("GET", "/in/config.json", "trickle")
    store = remote.open(f"s3://{remote.bucket}/in")
    assert (
        bytes(store.read("config.json", 0, 60)) == (remote.model / "config.json").read_bytes()[:60]
    )
    assert fault.met == 1


def tokens_from_a_program(root: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Path:
    """Let boto3 ask a program for credentials that last so long; each call gives another token."""
    program = root / "credentials.py"
    program.write_text(
        "import datetime, json, pathlib, sys, uuid\n"
        "token = uuid.uuid4().hex\n"
        f"with open({str(root / 'tokens')!r}, 'a') as file: file.write(token + '\\n')\n"
        f"end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={seconds})\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'temporary', 'SecretAccessKey': 'x' * 20,\n"
        "    'SessionToken': token, 'Expiration': end.isoformat()}))\n"
    )
    config = root / "aws-config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} -S {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(root / "none"))
    return root / "tokens"


class Newest:
    """The newest of the tokens that were given out, and only that."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __contains__(self, token: object) -> bool:
        return self._file.exists() and token in self._file.read_text().split()[-2:]


def test_session_tokens_are_renewed_in_the_middle_of_a_job(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Within ten minutes of their end boto3 renews credentials before each request.
    given = tokens_from_a_program(tmp_path, monkeypatch, 550)
    behind = S3Settings(remote.settings.endpoint_url, addressing_style="path")
    remote.gate.tokens = Newest(given)  # type: ignore[assignment]
    remote.prune(lambda uri: open_store(uri, behind))
    assert len(given.read_text().split()) > 5
    remote.gate.tokens = None
    remote.check()


def test_a_token_that_expires_keeps_the_workspace(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Static credentials: only the person who runs the job can renew them."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "temporary",
        "AWS_SECRET_ACCESS_KEY": "x" * 20,
        "AWS_SESSION_TOKEN": "first",
    }.items():
        monkeypatch.setenv(name, value)
    behind = S3Settings(remote.settings.endpoint_url, addressing_style="path")
    tokens = {"first"}
    remote.gate.tokens = tokens

    def expire(progress: Progress) -> None:
        if progress.phase is Phase.SOLVING:
            tokens.discard("first")

    with pytest.raises(CredentialsExpired) as caught:
        remote.prune(lambda uri: open_store(uri, behind), expire)
    assert "expired" in caught.value.message
    assert caught.value.retryable
    tokens.add("second")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "second")
    phases: set[Phase] = set()
    remote.prune(lambda uri: open_store(uri, behind), lambda progress: phases.add(progress.phase))
    assert Phase.CALIBRATING not in phases
    remote.gate.tokens = None
    remote.check()


def test_a_program_that_cannot_renew(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens_from_a_program(tmp_path, monkeypatch, 550)
    (tmp_path / "credentials.py").write_text("raise SystemExit('the secret is hunter2')")
    behind = S3Settings(remote.settings.endpoint_url, addressing_style="path")
    with pytest.raises(CredentialsExpired) as caught:
        open_store(f"s3://{remote.bucket}/in", behind).read("config.json")
    assert "hunter2" not in str(caught.value)
