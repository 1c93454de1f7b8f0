"""The rates of this machine's device for programs that do not load torch: measured, or remembered.

`evaluation.device_rates` measures them in a process of its own, whose libraries take a few seconds
to load. The result is remembered in a file, so that this happens once for each device, number of
threads and release.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from strucprune_core import __version__
from strucprune_core.child_environment import ACCELERATOR, child_environment
from strucprune_core.plan.rates import DeviceRates

_log = logging.getLogger(__name__)

FILE_NAME = "strucprune-rates.json"
# Another program may have been at work while it was measured; drivers change.
KEPT_SECONDS = 7 * 86400.0
# Loading the libraries, perhaps from a network disk on a busy machine, and about a second.
_MOST_SECONDS = 120.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_MEASURE = (sys.executable, "-m", "strucprune_core.evaluation.device_rates")


def known_rates(folder: Path, device: str = "auto") -> DeviceRates | None:
    """The rates of a device here; None if they cannot be measured.

    Args:
        folder: Where they are remembered; need not exist. It may not be writable.
        device: As in a job.
    """
    file, mark = folder / FILE_NAME, _mark(device)
    found = _remembered(file, mark)
    if found is None:
        found = _measured(device)
        if found is not None:
            _remember(file, mark, found)
    return found


def cache_folder() -> Path:
    """Where a user's programs keep what they can make again: `~/.cache`, or XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _mark(device: str) -> dict[str, Any]:
    """What the rates depend on."""
    seen = {name: os.environ.get(name) for name in (*ACCELERATOR, *_THREADS)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"release": __version__, "device": device, "cores": cores, "environment": seen}


def _remembered(file: Path, mark: dict[str, Any]) -> DeviceRates | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["mark"] == mark and 0 <= time.time() - kept["measured_at"] < KEPT_SECONDS:
            return DeviceRates.model_validate(kept["rates"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        pass  # It is measured again.
    return None


def _remember(file: Path, mark: dict[str, Any], rates: DeviceRates) -> None:
    kept = {"mark": mark, "measured_at": time.time(), "rates": rates.model_dump(mode="json")}
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        _log.info("the rates of this device cannot be remembered: %s", error)


def _measured(device: str) -> DeviceRates | None:
    try:
        done = subprocess.run(
            [*_MEASURE, device],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_MOST_SECONDS,
            env=child_environment({}, (*ACCELERATOR, *_THREADS)),
        )
        return DeviceRates.model_validate_json(done.stdout)
    except (OSError, subprocess.SubprocessError, ValidationError) as error:
        _log.warning("how fast this device is cannot be measured: %s", error)
        return None
