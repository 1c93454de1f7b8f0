"""A disk that is really full, or taken away: a clear error, nothing lost, the same bytes later.

The disk is a file system of its own (tmpfs in a mount namespace) that grows a little each time the
job has run into its end. Were a mapped file not given its space at once, the process would die.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strucprune_core.errors import ScratchUnavailable
from strucprune_core.run.progress import Progress
from strucprune_core.spec import JobSpec
from tests.core.jobs.tiny_job import checkpoint_of, run, tiny_spec
from tests.support.tiny_llama import make_tiny_llama

_GROWING = """
import json, shutil, subprocess, sys
from pathlib import Path
from strucprune_core.errors import StrucPruneError
from strucprune_core.pipeline import prune
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore

def grow(job):
    disk, size, errors = job["disk"], 4096, []
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    while True:
        try:
            spec = JobSpec.model_validate(job["spec"])
            if job.get("forgets"):
                shutil.rmtree(job["workspace"], ignore_errors=True)
            workspace = LocalStore(Path(job["workspace"]))
            prune(spec, workspace=workspace, scratch=Path(job["scratch"]))
            if "copy" in job:
                shutil.copytree(disk, job["copy"])
            return errors
        except StrucPruneError as error:
            errors.append(error.as_dict())
            size = size * 3 // 2
            subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)

print(json.dumps([grow(job) for job in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"), layers=2, intermediate=96)


def test_a_disk_that_fills_up_again_and_again(
    tmp_path: Path,
    model: Path,
    text_file: Path,
    expected: dict[str, bytes],
    private_mounts_prefix: list[str],
) -> None:
    codes = {"scratch": "scratch_unavailable", "workspace": "storage_unavailable"}
    done = subprocess.run(
        [*private_mounts_prefix, sys.executable, "-c", _GROWING],
        input=json.dumps([growing(tmp_path / full, model, text_file, full) for full in codes]),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    for (full, code), errors in zip(codes.items(), json.loads(done.stdout), strict=True):
        for error in errors:
            assert (error["code"], error["field"], error["retryable"]) == (code, full, True)
            assert "no space left on device" in error["message"]
            assert "Free space" in error["remedy"]
        assert len({error["phase"] for error in errors}) >= 3
        assert checkpoint_of(tmp_path / full / "out") == expected


def test_an_output_that_fills_up_again_and_again(
    tmp_path: Path,
    model: Path,
    text_file: Path,
    expected: dict[str, bytes],
    private_mounts_prefix: list[str],
) -> None:
    """The same command continues with what it left itself, with a workspace and without."""
    jobs = [
        {
            **growing(tmp_path / name, model, text_file, "out"),
            "forgets": name == "forgets",
        }
        for name in ("keeps", "forgets")
    ]
    for job in jobs:  # What is written there is gone with the mount: copied before.
        job["spec"]["output"]["uri_prefix"] = job["out"]
        job["copy"] = f"{job['disk']}-copy"
    done = subprocess.run(
        [*private_mounts_prefix, sys.executable, "-c", _GROWING],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    for job, errors in zip(jobs, json.loads(done.stdout), strict=True):
        assert {error["code"] for error in errors} == {"storage_unavailable"}
        assert {error["field"] for error in errors} == {"output.uri_prefix"}
        assert all("Free space" in error["remedy"] for error in errors)
        assert len(errors) > 3
        assert checkpoint_of(Path(job["copy"]) / "out") == expected


def growing(root: Path, model: Path, text: Path, full: str) -> dict[str, Any]:
    """A job of which one directory lies on the small disk."""
    disk = root / "disk"
    disk.mkdir(parents=True)
    places = {name: str(root / name) for name in ("scratch", "workspace")}
    spec = tiny_spec(model, text, root / "out").model_dump(mode="json")
    return {"spec": spec, "disk": str(disk), **places, full: str(disk / full)}


def test_a_scratch_directory_that_is_taken_away(
    tmp_path: Path, spec: JobSpec, expected: dict[str, bytes]
) -> None:
    def take_away(progress: Progress) -> None:
        if progress.phase == "calibrating":
            shutil.rmtree(tmp_path / "scratch", ignore_errors=True)

    with pytest.raises(ScratchUnavailable, match="no such file") as caught:
        run(spec, tmp_path, progress=take_away)
    assert (caught.value.field, caught.value.phase) == ("scratch", "calibrating")
    assert checkpoint_of(tmp_path / "out") == {}
    run(spec, tmp_path)
    assert checkpoint_of(tmp_path / "out") == expected


def test_a_scratch_directory_that_cannot_be(tmp_path: Path, spec: JobSpec) -> None:
    (tmp_path / "scratch").write_text("a file")
    with pytest.raises(ScratchUnavailable, match=r"exists|not a directory") as caught:
        run(spec, tmp_path)
    assert caught.value.field == "scratch"
