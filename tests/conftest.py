"""Fixtures that several test packages share; the expensive ones live for the whole session."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer

from embedded.s3 import S3Server
from embedded.stack import TENANT, Stack
from embedded.valkey import ValkeyServer
from tests.support.hub_server import Hub, running_hub
from tests.support.schedule import Scheduler, started_first, worker_count
from tests.support.small_disk import private_mounts
from tests.support.text import make_text

WEBHOOK_SECRET = "whsec_Y2FuYXJ5LW9mLXRoZS13ZWJob29rLXNlY3JldA=="
# So that a test may be told.
_WEBHOOKS = {
    "STRUCPRUNE_WEBHOOK_SECRETS": json.dumps({TENANT: WEBHOOK_SECRET}),
    "STRUCPRUNE_WEBHOOK_HOSTS": '["127.0.0.1"]',
    "STRUCPRUNE_WEBHOOK_ALLOW_HTTP": "true",
}
# Seconds, so that a test sees within seconds what heals within minutes in production.
SHORT_INTERVALS = {
    "STRUCPRUNE_LEASE_SECONDS": "4",
    "STRUCPRUNE_HEARTBEAT_SECONDS": "1",
    "STRUCPRUNE_PROGRESS_SECONDS": "0.2",
    "STRUCPRUNE_SIGNAL_SECONDS": "0.1",
    "STRUCPRUNE_RECONCILE_EVERY_SECONDS": "0.5",
    "STRUCPRUNE_REQUEUE_AFTER_SECONDS": "2",
}

# Jobs write little and sync every file: on a disk, most of a test's time would be waiting for it.
MEMORY_FILES = Path("/dev/shm")
MEMORY_FILES_NEEDED = 6 * 2**30
MEMORY_NEEDED = 12 * 2**30


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One thread a process; temporary files in memory, unless `--basetemp` says otherwise."""
    # More would only wait for each other: tests run side by side, and matrices are tiny. Read when
    # torch is imported, also by workers and subprocesses.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    alone = not hasattr(config, "workerinput")  # pytest-xdist hands its folder on to its workers
    if alone and config.option.basetemp is None and _memory_is_plenty():
        folder = tempfile.mkdtemp(prefix="strucprune-tests-", dir=MEMORY_FILES)
        config.option.basetemp = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `--numprocesses auto` starts."""
    return worker_count()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduler:
    """Slow files first, and those that share services in one process."""
    return Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long are started first."""
    items[:] = started_first(items)


def _memory_is_plenty() -> bool:
    try:
        usage = shutil.disk_usage(MEMORY_FILES)
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    available = next((line for line in lines if line.startswith("MemAvailable:")), "_ 0")
    return usage.free >= MEMORY_FILES_NEEDED and int(available.split()[1]) * 1024 >= MEMORY_NEEDED


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A real Valkey. Tests share it: flush it, or use keys of your own."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server. Tests share it: use a bucket of your own."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny Llama checkpoint. Do not write into it."""
    # Imported here: it brings torch, which most tests do without.
    from tests.support.tiny_llama import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 12,000 tokens (of the tiny model) of made-up prose."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def private_mounts_prefix(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command before which another may mount what only it sees."""
    prefix = private_mounts(tmp_path_factory.mktemp("mount"))
    if prefix is None:
        pytest.skip("this user may not mount a small file system, not even in a namespace")
    return prefix


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The converted SmolLM2-135M, in the repository's cache (mark such tests `real_model`)."""
    # Imported here: it brings transformers.
    from embedded.model import ensure_model

    return ensure_model(Path(__file__).parent.parent / ".cache/models/smollm2-135m")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, hub_of_the_stack: Hub) -> Iterator[Stack]:
    """The whole product with one worker and short leases (mark such tests `services`)."""
    with Stack(
        tmp_path_factory.mktemp("stack"),
        settings={**SHORT_INTERVALS, **_WEBHOOKS, **_hub_settings(hub_of_the_stack)},
    ) as running:
        yield running


@pytest.fixture(scope="session")
def hub_of_the_stack() -> Iterator[Hub]:
    """A hub of our own in place of huggingface.co, for the processes of `stack`."""
    with running_hub() as server:
        yield server


def _hub_settings(hub: Hub) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": next(iter(hub.tokens)),
        "STRUCPRUNE_HUB_REPOSITORIES": json.dumps({TENANT: ["acme/*", "datasets/acme/prose"]}),
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of our own in place of huggingface.co, for this process; without a token."""
    # The library reads its variables when it is imported.
    from huggingface_hub import close_session, constants

    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server
        close_session()  # Else its connections are warned about when they are collected.
