"""Limits a job on a GPU to what is free there when it begins, if it names no limit.

The limit decides the pieces, and pieces change rounding. So the workspace keeps it, and a run that
resumes the job, or assists it, uses the same. A service sets it when a job is submitted instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from strucprune_core.errors import ObjectNotFound, naming_field
from strucprune_core.spec import JobSpec
from strucprune_core.storage.store import Store

FREE_SHARE = 0.9
"""What a job may take of the free memory. The rest is for CUDA's libraries and for fragments."""

_KEY = "pins/device_memory.json"


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU; None of a CPU, whose memory others need too."""
    if device.type != "cuda":
        return None
    free, _total = torch.cuda.mem_get_info(device)
    return int(free)


def with_device_memory(
    spec: JobSpec, workspace: Store, measure: Callable[[], int | None]
) -> JobSpec:
    """The job with a limit of device memory, if it has none and its device is a GPU.

    Args:
        spec: The job.
        workspace: The job's, which keeps the limit from now on.
        measure: Bytes that are free on the device; None where there is no limit to be set.

    Raises:
        StrucPruneError: the workspace refused or failed.
    """
    if spec.runtime.device_memory_bytes is not None:
        return spec
    free = measure()
    if free is None:
        return spec
    with naming_field("workspace"):
        limit = _kept(workspace, int(FREE_SHARE * free))
    runtime = spec.runtime.model_copy(update={"device_memory_bytes": limit})
    return spec.model_copy(update={"runtime": runtime})


def _kept(workspace: Store, mine: int) -> int:
    """What the workspace has; it keeps `mine` if it has nothing that can be read."""
    data = json.dumps({"bytes": mine}).encode()
    if workspace.put_if_absent(_KEY, data):
        return mine
    try:
        kept = json.loads(bytes(workspace.read(_KEY)))["bytes"]
        if isinstance(kept, int) and kept > 0:
            return kept
    except (ObjectNotFound, ValueError, KeyError, TypeError):
        pass
    workspace.put(_KEY, data)
    return mine
