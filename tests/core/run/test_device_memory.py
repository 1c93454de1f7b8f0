"""A job on a GPU that names no limit gets one when it begins, and keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strucprune_core.run import opening
from strucprune_core.run.device_memory import FREE_SHARE, free_bytes, with_device_memory
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore
from tests.core.jobs.tiny_job import run, tiny_spec

UNUSED = Path("/unused")


def limit_of(spec: JobSpec, store: LocalStore, free: int | None) -> int | None:
    return with_device_memory(spec, store, lambda: free).runtime.device_memory_bytes


def test_it_is_what_was_free_at_first(tmp_path: Path) -> None:
    spec, store = tiny_spec(UNUSED, UNUSED, UNUSED), LocalStore(tmp_path)
    assert limit_of(spec, store, 10**9) == FREE_SHARE * 10**9
    assert limit_of(spec, store, 2 * 10**9) == FREE_SHARE * 10**9


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"bytes": "many"}', b'{"bytes": -1}'])
def test_what_is_damaged_is_replaced(tmp_path: Path, damaged: bytes) -> None:
    spec, store = tiny_spec(UNUSED, UNUSED, UNUSED), LocalStore(tmp_path)
    limit_of(spec, store, 10**9)
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damaged)
    assert limit_of(spec, store, 2 * 10**9) == 2 * FREE_SHARE * 10**9
    assert limit_of(spec, store, 10**9) == 2 * FREE_SHARE * 10**9


def test_a_named_limit_stays_and_a_cpu_has_none(tmp_path: Path) -> None:
    named = tiny_spec(UNUSED, UNUSED, UNUSED, runtime={"device_memory_bytes": 2**20})
    assert limit_of(named, LocalStore(tmp_path), 10**9) == 2**20
    assert free_bytes(torch.device("cpu")) is None
    assert not [*tmp_path.iterdir()]


def test_the_report_names_it(
    tmp_path: Path, tiny_model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "free_bytes", lambda device: 10**9)
    report = run(tiny_spec(tiny_model, text_file, tmp_path / "out"), tmp_path)
    assert report.spec["runtime"]["device_memory_bytes"] == FREE_SHARE * 10**9
    assert report.memory.device_peak_bytes.measured is not None
