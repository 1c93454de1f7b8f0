"""Shells complete commands, options and choices: tried in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.commands.calling import call

ROOT = Path(__file__).parents[3]
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
$(complete -p strucprune | sed 's/.*-F \\([^ ]*\\).*/\\1/') strucprune
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `strucprune` and its script for bash."""
    folder = tmp_path_factory.mktemp("program")
    file = folder / "strucprune"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m strucprune_core.commands.main "$@"\n')
    file.chmod(0o755)
    (folder / "script").write_text(call("completion", "bash").stdout)
    return folder


def completed(program: Path, *words: str) -> set[str]:
    bash = shutil.which("bash")
    assert bash is not None
    path = f"{program}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "--norc", "-c", COMPLETE, "bash", program / "script", "strucprune", *words],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return {line for line in done.stdout.splitlines() if line}


def test_bash(program: Path) -> None:
    assert completed(program, "pr") == {"prune"}
    assert {"jobs", "keys", "estimate", "completion"} <= completed(program, "")
    assert completed(program, "jobs", "dow") == {"download"}
    assert completed(program, "prune", "m", "--distill-s") == {"--distill-steps"}
    assert completed(program, "prune", "m", "--solver", "a") == {"admm"}
    assert completed(program, "jobs", "submit", "--export", "gguf") == {"gguf", "gguf_q8_0"}
    assert completed(program, "completion", "z") == {"zsh"}
    assert completed(program, "jobs", "show", "job_") == set()  # no service, and no message
    assert completed(program, "prune", "./so") == set()  # left to bash, which knows the files


@pytest.mark.parametrize(
    ("shell", "words"),
    [("zsh", "#compdef strucprune"), ("fish", "complete --command strucprune")],
)
def test_other_shells(shell: str, words: str) -> None:
    done = call("completion", shell)
    assert done.exit_code == 0
    assert words in done.stdout
    assert "_STRUCPRUNE_COMPLETE" in done.stdout


def test_no_such_shell() -> None:
    done = call("completion", "dos")
    assert done.exit_code == 2
    assert "'dos' is none of bash, zsh, fish." in done.stderr
