"""Scratch directories: gone with their solve, or swept away after a crash; never while in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from strucprune_core.scratch import directories as scratch
from strucprune_core.scratch.directories import PREFIX, scratch_directory, sweep

ROOT = Path(__file__).parents[3]


def test_it_goes_with_its_solve(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as path:
        assert path.parent == tmp_path
        (path / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_leaves_what_is_in_use(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as path:
        assert sweep(tmp_path) == 0
        assert path.is_dir()


def test_a_sweep_removes_what_a_crash_left(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; "
        "from strucprune_core.scratch.directories import scratch_directory\n"
        "with scratch_directory(Path(sys.argv[1])) as path:\n"
        "    (path / 'big').touch(); print(path, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as crashing:
        assert crashing.stdout is not None
        left = Path(crashing.stdout.readline().strip())
        os.kill(crashing.pid, signal.SIGKILL)
    assert (left / "big").exists()
    assert sweep(tmp_path) == 1
    assert not left.exists()


def test_a_sweep_leaves_what_is_not_ours(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "strucprune-results").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    (tmp_path / f"{PREFIX}file").touch()
    assert sweep(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_a_directory_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = scratch._lock
    swept: list[Path] = []

    def sweep_first(path: Path, *, wait: bool) -> int | None:
        if wait and not swept:
            swept.append(path)
            assert sweep(tmp_path) == 1
        return lock(path, wait=wait)

    monkeypatch.setattr(scratch, "_lock", sweep_first)
    with scratch_directory(tmp_path) as path:
        assert path != swept[0]
        assert path.is_dir()
