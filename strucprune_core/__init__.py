"""StrucPrune: structured pruning of large language models, one layer in memory at a time.

The command is `strucprune`; from Python:

    report = strucprune_core.prune(spec, workspace=..., scratch=...)
    model = strucprune_core.load_pretrained("pruned/")

Importing this package imports no torch: `prune` and `load_pretrained` load it on first use.
"""

from __future__ import annotations

from typing import Any

from strucprune_core.errors import StrucPruneError
from strucprune_core.report.document import Report
from strucprune_core.spec import (
    CalibrationSpec,
    EvaluationSpec,
    JobSpec,
    ModelSpec,
    OutputSpec,
    PruningSpec,
    RuntimeSpec,
)

__version__ = "0.1.0"

__all__ = [
    "CalibrationSpec",
    "EvaluationSpec",
    "JobSpec",
    "ModelSpec",
    "OutputSpec",
    "PruningSpec",
    "Report",
    "RuntimeSpec",
    "StrucPruneError",
    "__version__",
    "load_pretrained",
    "prune",
]


def __getattr__(name: str) -> Any:
    if name == "prune":
        from strucprune_core.pipeline import prune

        return prune
    if name == "load_pretrained":
        from strucprune_core.export.loading import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
