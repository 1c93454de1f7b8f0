"""The `strucprune` command, called as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from strucprune_core.commands.main import app

RUNNER = CliRunner()


def call(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def result_of(*arguments: str | Path) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    body: dict[str, Any] = json.loads(result.stdout)
    return body


def prune_command(model: Path, text: Path, output: Path, *more: str | Path) -> list[str | Path]:
    return [
        *("prune", model, "--output", output, "--sparsity", "0.3", "--calibration", text),
        *("--samples", "8", "--sequence-length", "32"),
        *more,
    ]


def failed(*arguments: str | Path) -> dict[str, Any]:
    result = call(*arguments, "--json")
    assert result.exit_code in (1, 2), result.output
    body: dict[str, Any] = json.loads(result.stdout)["error"]
    return body
