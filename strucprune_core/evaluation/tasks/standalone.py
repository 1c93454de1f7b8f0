"""Judging a checkpoint by tasks outside a job: `strucprune evaluate --tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strucprune_core.evaluation.tasks.installed import check_installed
from strucprune_core.evaluation.tasks.opened import open_answers
from strucprune_core.evaluation.tasks.run import run_tasks
from strucprune_core.evaluation.tasks.task_files import read_task_files
from strucprune_core.models.forward import Tick
from strucprune_core.plan.task_memory import CONTEXT_TOKENS
from strucprune_core.storage.open import open_store


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    *,
    task_files: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    device: str = "auto",
    micro_batch_tokens: int = 4096,
    tick: Tick = lambda: None,
) -> list[dict[str, Any]]:
    """Scores of a model on tasks of lm-evaluation-harness, streamed.

    Args:
        model: Directory, s3 or hf URI.
        tasks: Tasks, groups or tags of the harness, which downloads their data from the hub unless
            they are in its cache; or names of task files.
        task_files: Prefix with task files: see `task_files`. Names found there come from there.
        limit: Documents of each task, from the first; all if None.
        num_fewshot: Examples before each document; as the task says if None.
        context_tokens: Most tokens of a request; what is longer loses its beginning.
        device: "auto", "cpu", "cuda" or "cuda:1".
        micro_batch_tokens: Tokens pushed through a layer at a time.
        tick: Called at safe points.

    Returns:
        For each task the fields of `report.document.TaskScores`.

    Raises:
        StrucPruneError: see `errors`.
    """
    check_installed()
    own = {} if task_files is None else read_task_files(open_store(task_files), tasks)
    names = [name for name in tasks if name not in own]
    with open_answers(
        model,
        device=device,
        context_tokens=context_tokens,
        micro_batch_tokens=micro_batch_tokens,
        tick=tick,
    ) as answers:
        scores = run_tasks(
            answers,
            names,
            limit=limit,
            num_fewshot=num_fewshot,
            own=list(own.values()),
        )
    return [each.model_dump(mode="json") for each in scores]
