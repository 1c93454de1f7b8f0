"""The environment of child processes: what Python needs to start, and no credentials."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
)
ACCELERATOR = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)
"""Variables of a process that computes on an accelerator."""


def child_environment(
    settings: Mapping[str, str], passed_on: Collection[str] = ()
) -> dict[str, str]:
    """The environment of a child process that imports the same modules as this one.

    Args:
        settings: Variables that the child gets.
        passed_on: Further variables of this process that it inherits.
    """
    inherited = (*_PASSED_ON, *passed_on)
    passed = {name: os.environ[name] for name in inherited if name in os.environ}
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {**passed, **settings, "PYTHONPATH": path}
