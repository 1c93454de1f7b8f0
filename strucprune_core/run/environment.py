"""Where this process computes, for the report."""

from __future__ import annotations

import os
import platform

import torch

from strucprune_core import __version__
from strucprune_core.models.precision import Precision
from strucprune_core.report.document import Environment


def environment_of(
    device: torch.device,
    precision: Precision = "float32",
    solve_dtype: torch.dtype = torch.float64,
) -> Environment:
    """What may change rounding: two runs in equal environments give the same bytes.

    Args:
        device: Where it computes.
        precision: What it computes in there.
        solve_dtype: The same of curves and solves.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Environment(
        strucprune=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        device=name,
        platform=platform.platform(),
        threads=torch.get_num_threads() or os.cpu_count() or 1,
        precision=precision,
        solve_dtype=str(solve_dtype).removeprefix("torch."),
    )
