"""Runs the job of `benchmarks.helping` with one worker, and records what its units take."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path

import torch

from benchmarks.helping import whole_job
from embedded.demo import TASK
from embedded.model import ensure_model
from embedded.stack import ROOT
from embedded.text import ensure_texts
from strucprune_core.pipeline import run_job
from strucprune_core.run.progress import FinishedUnit
from strucprune_core.spec import JobSpec
from strucprune_core.storage.local import LocalStore


def record(root: Path) -> dict[str, float]:
    """Seconds of the processor by unit, of this process on one thread and of those it starts.

    Args:
        root: For the workspace, the output and temporary files.
    """
    torch.set_num_threads(1)
    texts = ensure_texts()
    tasks = root / "tasks"
    tasks.mkdir(parents=True)
    for path in (ROOT / "embedded" / "tasks").glob(f"{TASK}.*"):
        shutil.copy(path, tasks)
    job = whole_job("out", 1)
    job["model"]["uri"] = str(ensure_model().resolve())
    job["output"]["uri_prefix"] = str(root / "out")
    job["calibration"]["uri"] = str(texts.calibration.resolve())
    job["evaluation"] |= {"uri": str(texts.evaluation.resolve()), "task_files": str(tasks)}
    seconds: dict[str, float] = {}
    before = _processor_seconds()

    def note(unit: FinishedUnit) -> None:
        nonlocal before
        now = _processor_seconds()
        seconds[unit.name], before = round(now - before, 3), now

    run_job(
        JobSpec.model_validate(job),
        workspace=LocalStore(root / "workspace"),
        scratch=root / "scratch",
        finished=note,
    )
    return seconds


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
