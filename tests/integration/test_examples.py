"""The examples under docs/examples, as they stand there, against the running stack."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedded.stack import ROOT, Stack
from tests.integration.conftest import MakeSpec

pytestmark = pytest.mark.services

EXAMPLES = ROOT / "docs/examples"


def run(stack: Stack, *command: str, **environment: str) -> str:
    """What the command prints."""
    variables = {
        "STRUCPRUNE_URL": stack.api_url,
        "STRUCPRUNE_API_KEY": stack.api_key,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", ""))),
        **environment,
    }
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert stack.api_key not in done.stdout + done.stderr
    return done.stdout


def test_dag(stack: Stack, make_spec: MakeSpec, tmp_path: Path) -> None:
    job, out = tmp_path / "job.json", tmp_path / "out"
    job.write_text(json.dumps(make_spec()), encoding="utf-8")
    told = run(stack, sys.executable, str(EXAMPLES / "dag.py"), str(job), "run-1", str(out))
    assert "succeeded" in told
    assert (out / "model.safetensors").stat().st_size > 0
    (out / "config.json").unlink()
    # A task that is run again finds its job, and fetches what is missing.
    code = (
        "import json, sys, dag; spec = json.load(open(sys.argv[1])); "
        "dag.fetch(dag.prune(spec, 'run-1'), sys.argv[2])"
    )
    again = run(stack, sys.executable, "-c", code, str(job), str(out))
    assert (out / "config.json").stat().st_size > 0
    assert set(_jobs_in(again)) == set(_jobs_in(told))


def _jobs_in(text: str) -> list[str]:
    return re.findall(r"job_[0-9a-f]{32}", text)


# The one example that needs more than Python. PyPI has no curl, and its jq is a module without the
# program.
@pytest.mark.skipif(
    not (shutil.which("jq") and shutil.which("curl")),
    reason="an example for shells that have curl and jq, and pip cannot install those: do so with "
    "the system's packages, e.g. apt-get install curl jq",
)
def test_shell_pipeline(stack: Stack, make_spec: MakeSpec, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps(make_spec()), encoding="utf-8")
    run(stack, str(EXAMPLES / "pipeline.sh"), str(job), str(tmp_path / "out"))
    assert (tmp_path / "out/model.safetensors").stat().st_size > 0
    assert (tmp_path / "out/strucprune.json").exists()
