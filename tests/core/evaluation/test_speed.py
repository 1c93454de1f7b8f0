"""Measuring in turns, models in processes of their own, and how much memory there is for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from strucprune_core.errors import Stopped
from strucprune_core.evaluation.available_memory import available_bytes
from strucprune_core.evaluation.speed import NotMeasured, SpeedProcess, measure_in_turns
from strucprune_core.evaluation.speed_process import Loaded, Request, Round


@dataclass
class Counted:
    """A model whose n-th measurement takes n seconds."""

    log: list[str]
    name: str
    count: int = field(default=0)

    def loaded(self) -> Loaded:
        raise AssertionError

    def round(self) -> Round:
        self.count += 1
        self.log.append(self.name)
        return Round(first_token_seconds=self.count, decode_seconds=10 * self.count)

    def peak(self) -> int:
        raise AssertionError


def test_turns() -> None:
    log: list[str] = []
    ticks: list[int] = []
    runs = measure_in_turns(
        {"dense": Counted(log, "d"), "pruned": Counted(log, "p")}, 3, lambda: ticks.append(1)
    )
    # One round to warm up, which is not recorded; then who comes first changes.
    assert "".join(log) == "dp" + "dp" + "pd" + "dp"
    assert [(run.model[0], run.first_token_seconds) for run in runs] == [
        ("d", 2),
        ("p", 2),
        ("p", 3),
        ("d", 3),
        ("d", 4),
        ("p", 4),
    ]
    assert [run.decode_seconds for run in runs] == [20, 20, 30, 30, 40, 40]
    assert len(ticks) == 8


def request(folder: Path) -> Request:
    return Request(folder=str(folder), device="cpu", threads=1, prompt=[5, 9, 2], new_tokens=4)


def test_a_model_in_its_process(tiny_model: Path) -> None:
    with SpeedProcess(request(tiny_model)) as process:
        assert process.loaded().dtype == "float32"
        first, second = process.round(), process.round()
        assert min(first.first_token_seconds, second.decode_seconds) > 0
        assert process.peak() > 0
    with pytest.raises(ValueError, match="closed"):
        process.round()


def test_a_checkpoint_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    with SpeedProcess(request(tmp_path)) as process, pytest.raises(NotMeasured, match="no such"):
        process.loaded()


def test_code_beside_a_model_is_not_run(tmp_path: Path) -> None:
    """Nor is anybody asked whether it may be."""
    ran = tmp_path / "ran"
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with SpeedProcess(request(tmp_path)) as process, pytest.raises(NotMeasured):
        process.loaded()
    assert not ran.exists()


def test_a_stop_takes_effect_while_a_model_loads(tiny_model: Path) -> None:
    def stop() -> None:
        raise Stopped("asked to")

    with SpeedProcess(request(tiny_model), stop) as process, pytest.raises(Stopped):
        process.loaded()


def kernel(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:  50 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MACHINE, 50 * 1024),
        ({**MACHINE, "proc/self/cgroup": "1:memory:/old\n"}, 50 * 1024),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/job/step\n",
                "sys/job/step/memory.max": "max\n",
                "sys/job/step/memory.current": "3\n",
                "sys/job/memory.max": "20000\n",
                "sys/job/memory.current": "15000\n",
                "sys/job/memory.stat": "anon 1\nfile 4000\nfile_mapped 9\n",
            },
            9000,
        ),
        (
            {
                "proc/self/cgroup": "0::/hidden/in/a/container\n",
                "sys/memory.max": "20000\n",
                "sys/memory.current": "25000\n",
            },
            0,
        ),
    ],
)
def test_memory_that_is_left(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    root = kernel(tmp_path, files)
    assert available_bytes(root / "proc", root / "sys") == expected
