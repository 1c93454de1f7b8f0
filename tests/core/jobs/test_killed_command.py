"""`strucprune prune`, killed at 20 random instants and restarted: the bytes are the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from strucprune_core.scratch.directories import PREFIX
from strucprune_core.storage import local
from tests.core.jobs.tiny_job import checkpoint_of, files_of
from tests.support.kills import in_a_process_of_its_own
from tests.support.tiny_llama import make_tiny_llama

CHAIN_KILLS = 18
SEED = 20


@dataclass(frozen=True)
class Killed:
    """What killed runs have left: the command, its undisturbed result, and the others' outputs."""

    command: list[str]
    expected: dict[str, bytes]
    outputs: list[Path]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Killed:
    base = tmp_path_factory.mktemp("killed")
    model = make_tiny_llama(base / "model", layers=4, intermediate=96)
    command = [
        *("prune", str(model), "--output", "{root}/out", "--workspace", "{root}/work"),
        *("--sparsity", "0.3", "--calibration", str(text_file)),
        *("--samples", "8", "--sequence-length", "32", "--evaluation", str(text_file)),
        *("--evaluation-sequences", "2", "--evaluation-sequence-length", "32"),
    ]
    found = in_a_process_of_its_own(command, base, CHAIN_KILLS, SEED)
    assert found["statuses"].count(-signal.SIGKILL) == CHAIN_KILLS
    assert set(found["statuses"]) == {0, -signal.SIGKILL}
    outputs = [base / str(number) / "out" for number in range(found["jobs"])]
    return Killed(command, checkpoint_of(base / "undisturbed/out"), outputs)


def test_killed_again_and_again(killed: Killed) -> None:
    assert len(killed.outputs) > 1
    for output in killed.outputs:
        assert checkpoint_of(output) == killed.expected


@pytest.mark.skipif(not local._HAS_PROC, reason="unfinished files have names here")
def test_nothing_is_left_beside_the_result(killed: Killed) -> None:
    published = {*killed.expected, "report.json", "report.html", "strucprune.json"}
    for output in killed.outputs:
        assert set(files_of(output)) == published


def test_temporary_files_of_killed_runs_are_removed(killed: Killed) -> None:
    base = killed.outputs[0].parents[1]  # Also the directory of temporary files.
    assert list(base.glob(f"{PREFIX}*")) == []


def test_the_command_itself(killed: Killed, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "strucprune_core.commands.main"),
        *(part.replace("{root}", str(tmp_path)) for part in killed.command),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}

    def attempt() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[3])

    draw = random.Random(SEED)
    for span in ((1, 6), (7, 12)):  # Finished units, of 24; imports are still to come after them.
        units = draw.randint(*span)
        with attempt() as process:
            while process.poll() is None and len(finished(tmp_path)) < units:
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with attempt() as process:
        assert process.wait() == 0
    assert checkpoint_of(tmp_path / "out") == killed.expected


def finished(root: Path) -> list[Path]:
    return list((root / "work/units").glob("*/manifest.json"))
