from __future__ import annotations

import signal
from pathlib import Path

import pytest

from strucprune_core.oom import OomWatch
from strucprune_core.spec import JobSpec
from worker.failures import crash
from worker.memory_retry import following, smaller_plan


def kernel(tmp_path: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "vmstat").write_text("nr_free_pages 7\noom_kill 5\n")
    for name, text in files.items():
        path = cgroups / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return proc, cgroups


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/kubepods/pod1\n", "kubepods__pod1__memory_dot_events"),
        ("0::/kubepods/pod1\n", "memory_dot_events"),  # as seen from within a container
        ("4:memory:/pod1\n0::/\n", "memory__pod1__memory_dot_oom_control"),
        ("4:cpu,memory:/pod1\n", "memory__memory_dot_oom_control"),
    ],
)
def test_the_groups_own_counter(tmp_path: Path, cgroup: str, file: str) -> None:
    proc, cgroups = kernel(tmp_path, cgroup, **{file: "oom 3\noom_kill 3\n"})
    watch = OomWatch(proc, cgroups)
    (proc / "vmstat").write_text("oom_kill 6\n")  # somebody else's
    assert not watch.fired()
    next(path for path in cgroups.rglob("memory.*") if path.is_file()).write_text("oom_kill 4\n")
    assert watch.fired()


def test_the_machines_counter_where_there_is_no_group(tmp_path: Path) -> None:
    proc, cgroups = kernel(tmp_path, "0::/\n")
    watch = OomWatch(proc, cgroups)
    assert not watch.fired()
    (proc / "vmstat").write_text("oom_kill 6\n")
    assert watch.fired()


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert not OomWatch(tmp_path, tmp_path).fired()


def test_this_machine() -> None:
    assert not OomWatch().fired()


def test_a_kill_is_out_of_memory_only_if_the_kernel_says_so() -> None:
    assert crash(-signal.SIGKILL, None, oom_killed=True).code == "out_of_memory"
    assert crash(-signal.SIGKILL, None).code == "solve_crashed"
    assert crash(1, None, oom_killed=True).code == "solve_crashed"


@pytest.mark.parametrize(
    ("tokens", "length", "smaller"), [(4096, 512, 2048), (1000, 512, 512), (256, 512, 256)]
)
def test_the_plan_halves_what_is_in_memory_down_to_one_sequence(
    tokens: int, length: int, smaller: int
) -> None:
    spec = JobSpec.model_validate(
        {
            "model": {"uri": "s3://bucket/m"},
            "output": {"uri_prefix": "s3://bucket/o"},
            "pruning": {"sparsity": 0.5},
            "calibration": {"uri": "s3://bucket/t.txt", "sequence_length": length},
            "runtime": {"micro_batch_tokens": tokens},
        }
    )
    plan = smaller_plan(spec, None)
    assert plan == {"micro_batch_tokens": smaller}
    assert smaller_plan(spec, plan) is None
    followed = following(spec, plan)
    assert followed.runtime.micro_batch_tokens == smaller
    assert followed.result_fingerprint() == spec.result_fingerprint()
