"""Says at once which packages are missing. Imports nothing of the library."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

NEEDED = (
    "jinja2",
    "numpy",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
)
"""What pruning imports, from a directory and to one, without a service, a hub or exports."""


def missing(needed: Iterable[str] = NEEDED) -> list[str]:
    """The packages that cannot be imported here, by their modules' names."""
    return [name for name in needed if find_spec(name) is None]


def complaint(names: Iterable[str]) -> str:
    """One line about missing packages."""
    return f"benchmarks.gpu: not installed here: {', '.join(names)}"
