"""Help answers at once: it loads nothing that only work needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What takes long to import, and what only a command that does its work needs.
SLOW = {
    *("torch", "transformers", "tokenizers", "pyarrow", "numpy", "huggingface_hub"),
    *("boto3", "botocore", "httpx", "asyncio", "jinja2", "lm_eval", "gguf"),
    *("strucprune_core.report.document", "strucprune_core.plan.estimate"),
}
COMMANDS = ["", "prune", "estimate", "evaluate", "jobs", "jobs submit", "jobs download", "keys"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_slow(command: str) -> None:
    code = (
        "import sys\n"
        "from strucprune_core.commands.main import app\n"
        "try:\n"
        "    app(sys.argv[1:], prog_name='strucprune')\n"
        "finally:\n"
        "    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"Usage: strucprune {command}".rstrip())
    loaded = set(done.stderr.split())
    assert "strucprune_core.spec" in loaded
    assert not loaded & SLOW
