"""Rates for programs without torch: measured by another process, and remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strucprune_core.evaluation import known_rates as module
from strucprune_core.evaluation.known_rates import (
    FILE_NAME,
    KEPT_SECONDS,
    cache_folder,
    known_rates,
)
from strucprune_core.plan.rates import DeviceRates
from tests.support.rates import RATES


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that were measured; each time the same is found."""
    devices: list[str] = []

    def measure(device: str) -> DeviceRates | None:
        devices.append(device)
        return RATES if device != "cuda" else None

    monkeypatch.setattr(module, "_measured", measure)
    return devices


def test_this_machine_is_measured_by_another_process(tmp_path: Path) -> None:
    found = known_rates(tmp_path, "cpu")
    assert found is not None
    assert (found.kind, set(found.products)) == ("cpu", {"float32", "float64"})
    kept = json.loads((tmp_path / FILE_NAME).read_text())
    assert DeviceRates.model_validate(kept["rates"]) == found
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_what_was_measured_is_remembered(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "folder"
    assert known_rates(folder) == known_rates(folder) == RATES
    assert measured == ["auto"]
    # Another device, another number of threads, or other GPUs are others.
    known_rates(folder, "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    known_rates(folder, "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    known_rates(folder, "cpu")
    assert measured == ["auto", "cpu", "cpu", "cpu"]


@pytest.mark.parametrize("age", [KEPT_SECONDS + 60, -3600])
def test_what_is_old_or_from_the_future_is_measured_again(
    tmp_path: Path, measured: list[str], age: float
) -> None:
    known_rates(tmp_path)
    file = tmp_path / FILE_NAME
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "measured_at": kept["measured_at"] - age}))
    known_rates(tmp_path)
    assert measured == ["auto", "auto"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"mark": 1}', '{"rates": {}}'])
def test_a_file_that_is_none_is_replaced(tmp_path: Path, measured: list[str], text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    assert known_rates(tmp_path) == RATES
    assert known_rates(tmp_path) == RATES
    assert measured == ["auto"]


def test_nothing_needs_to_be_writable_or_measurable(tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "file").write_text("")
    assert known_rates(tmp_path / "file" / "below") == RATES
    assert known_rates(tmp_path, "cuda") is None
    assert known_rates(tmp_path, "cuda") is None
    assert measured == ["auto", "cuda", "cuda"]


def test_a_device_that_is_not_there_has_no_rates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert known_rates(tmp_path, "cuda:999") is None
    assert "cannot be measured" in caplog.text
    assert not [*tmp_path.iterdir()]


def test_where_a_user_keeps_what_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache"
