"""The commands that model cards print, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {"llama-cli": "llama.cpp", "mlx_lm.generate": "MLX"}
"""The runtime of each program that is run. (vLLM's is a server, and does not end.)"""

_BLOCK = re.compile(r"^```sh\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_LAST_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a model card, and what came of it.

    Attributes:
        runtime: Its name.
        checkpoint: Whose card it is on.
        command: As printed.
        exit_code: None: it did not end in time.
        output: The end of what it wrote: its standard output, or if that is empty, its errors.
    """

    runtime: str
    checkpoint: str
    command: str
    exit_code: int | None
    output: str


def card_commands(directory: Path) -> list[tuple[str, str]]:
    """(runtime, command) on a checkpoint's card, of `PROGRAMS` only."""
    card = (directory / "README.md").read_text(encoding="utf-8")
    found = [(each.split()[0], each) for each in _BLOCK.findall(card)]
    return [(PROGRAMS[program], command) for program, command in found if program in PROGRAMS]


def run_commands(
    name: str, directory: Path, folders: Sequence[Path], limit_seconds: float
) -> list[Command]:
    """Run the commands of a checkpoint's card in its directory, without a keyboard.

    Args:
        name: Of the checkpoint.
        directory: Of it.
        folders: Where the programs are; searched before PATH.
        limit_seconds: For each command.
    """
    path = os.pathsep.join([*(str(each.resolve()) for each in folders), os.environ["PATH"]])
    found = []
    for runtime, command in card_commands(directory):
        code, output = _run(command, directory, path, limit_seconds)
        found.append(Command(runtime, name, command, code, output))
    return found


def failures(commands: Sequence[Command]) -> list[str]:
    """What is wrong with commands: they failed, or wrote nothing."""
    return [
        f"{each.runtime}, card of {each.checkpoint}: `{each.command}` ended with "
        f"{each.exit_code}: {each.output}"
        for each in commands
        if each.exit_code != 0 or not each.output
    ]


def _run(command: str, directory: Path, path: str, limit_seconds: float) -> tuple[int | None, str]:
    try:
        done = subprocess.run(
            command,
            shell=True,
            cwd=directory,
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"it did not end within {limit_seconds:.0f} s"
    output = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode or not output:
        output = done.stderr.decode("utf-8", "replace").strip()
    return done.returncode, output[-_LAST_CHARACTERS:]
