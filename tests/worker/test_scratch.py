"""A worker and its place for temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_worker_without_a_place_for_scratch_does_not_start(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "STRUCPRUNE_REDIS_URL": "redis://127.0.0.1:1/0",
        "STRUCPRUNE_STATE_URI": str(tmp_path),
        "STRUCPRUNE_SCRATCH_DIRECTORY": str(tmp_path / "nowhere"),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env=environment,
    )
    assert ended.returncode == 1
    assert "STRUCPRUNE_SCRATCH_DIRECTORY" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
