"""What a benchmark tells while it runs, and the file of its result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def tell(line: str) -> None:
    """Print a line at once, though standard output may be a file."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_result(path: Path | None, result: Any) -> None:
    """Write a result as JSON, if it has a path; its folder is made."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
