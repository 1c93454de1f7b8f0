"""What the documentation's blocks find: a model and texts, a command, and a running service."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.processes import ManagedProcess
from embedded.stack import ROOT, WORK_BUCKET, Stack
from embedded.text import Texts, ensure_texts
from tests.docs.command_server import write_client

# The name under which all pages know the model; here it is a tiny one.
MODEL = "models/smollm2-135m"


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """The two texts of `python -m embedded.text`."""
    return ensure_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of commands for PATH: `strucprune`, without its seconds of imports."""
    directory = tmp_path_factory.mktemp("commands")
    path = directory / "server"
    (directory / "bin").mkdir()
    write_client(directory / "bin/strucprune", path)
    server = ManagedProcess(
        "commands",
        [sys.executable, "-m", "tests.docs.command_server", str(path)],
        log_directory=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    try:
        server.wait_ready(lambda: "ready" in server.log_tail())
        yield directory / "bin"
    finally:
        server.stop()


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that a page's blocks run in, laid out as a checkout after `make model`."""
    (tmp_path / ".cache/models").mkdir(parents=True)
    (tmp_path / ".cache" / MODEL).symlink_to(tiny_model)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for text in (texts.calibration, texts.evaluation):
        (tmp_path / text.name).write_bytes(text.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Python's blocks in one thread, as `commands` is: a tiny model gains nothing by two."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def service(stack: Stack, tiny_model: Path, texts: Texts) -> Stack:
    """The running service, with what `make demo KEEP=1` leaves in its bucket."""
    s3 = stack.s3.client()
    for path in tiny_model.iterdir():
        s3.upload_file(str(path), WORK_BUCKET, f"{MODEL}/{path.name}")
    for path in (texts.calibration, texts.evaluation):
        s3.upload_file(str(path), WORK_BUCKET, f"text/{path.name}")
    return stack
