"""`make demo`, the first command of the README, on a tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedded.demo import PROMPT
from embedded.stack import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


# A whole stack, a job and a fresh process: much for a busy machine.
@pytest.mark.timeout(600)
@pytest.mark.services
def test_the_demo_prunes_and_lets_the_model_talk(place: Path) -> None:
    recipe = re.search(r"^demo:.*\n\t\$\(BIN\)/python (-m \S+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    done = subprocess.run(
        [sys.executable, *recipe[1].split()],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "perplexity" in done.stdout
    assert PROMPT in " ".join(done.stdout.split())
    assert (place / ".demo/result/strucprune.json").exists()
    assert (place / ".demo/result/report.html").exists()
