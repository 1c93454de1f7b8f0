"""StrucPrune: structured pruning of large language models, one layer in memory at a time.

The command is `strucprune`; from Python:

    report = strucprune_core.prune(spec, workspace=..., scratch=...)  # run_job: several sizes
    model = strucprune_core.load_pretrained("pruned/")

Importing this package imports nothing else: each name loads its module on first use. So programs
that need one module of it start fast, and only `prune`, `run_job` and `load_pretrained` load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strucprune_core.errors import StrucPruneError
    from strucprune_core.export.loading import load_pretrained
    from strucprune_core.pipeline import prune, run_job
    from strucprune_core.report.document import Report
    from strucprune_core.report.sizes import SizesReport
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
    "SizesReport",
    "StrucPruneError",
    "__version__",
    "load_pretrained",
    "prune",
    "run_job",
]


_MODULES = {
    "Report": "report.document",
    "SizesReport": "report.sizes",
    "StrucPruneError": "errors",
    "load_pretrained": "export.loading",
    "prune": "pipeline",
    "run_job": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'spec')}"), name)
