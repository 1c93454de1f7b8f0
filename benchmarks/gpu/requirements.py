"""Says at once what is missing or too old. Imports nothing of the library."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

PYTHON = (3, 11)
NEEDED = {
    "jinja2": "3.1.6",
    "numpy": "1.26",
    "pydantic": "2.11",
    "pyyaml": "6",
    "safetensors": "0.5",
    "tokenizers": "0.21",
    "torch": "2.6",
    "transformers": "5.0",
}
"""What pruning imports from a directory to a directory, without service, hub or exports, and the
oldest release of each."""


def missing(needed: Mapping[str, str] = NEEDED) -> list[str]:
    """What is not installed here, or in too old a release."""
    found = []
    if sys.version_info < PYTHON:
        found.append(f"Python {'.'.join(map(str, PYTHON))}")
    for name, least in needed.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            found.append(f"{name} {least}")
            continue
        if _numbers(installed) < _numbers(least):
            found.append(f"{name} {least} (here {installed})")
    return found


def complaint(lacking: list[str]) -> str:
    """One line about it."""
    return f"benchmarks.gpu needs, in these releases or newer: {', '.join(lacking)}"


def _numbers(release: str) -> tuple[int, ...]:
    """The numbers that a release begins with: 2.13.0+cpu is (2, 13, 0)."""
    begins = re.match(r"\d+(\.\d+)*", release)
    return tuple(int(part) for part in begins[0].split(".")) if begins else ()
