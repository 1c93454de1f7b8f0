"""Checks the tasks that a job names, without lm-evaluation-harness. No torch.

The harness's names are a table in the package, `task_names.txt`, made with the pinned release. Its
own index is made of 15,000 files and takes seconds to read, and the API does without the harness.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from strucprune_core.errors import InvalidSpec, naming_field
from strucprune_core.evaluation.tasks.task_files import FIELD, read_definitions
from strucprune_core.spec import EvaluationSpec, JobSpec
from strucprune_core.storage.digests import sha256_of_bytes
from strucprune_core.storage.store import ReadableStore
from strucprune_core.storage.versions import version_of

NAMES_FILE = Path(__file__).with_name("task_names.txt")
_TASKS = "evaluation.tasks"


@cache
def harness_names() -> frozenset[str]:
    """Tasks, groups and tags of the harness."""
    lines = NAMES_FILE.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def unknown_task(name: str, known: Collection[str]) -> InvalidSpec:
    """The error for a name that the harness does not have."""
    close = difflib.get_close_matches(name, known, 3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return InvalidSpec(
        f"lm-evaluation-harness has no task {name[:100]!r}",
        field=_TASKS,
        remedy=f"Use a name that `lm-eval ls tasks` lists, or add a task file.{hint}",
    )


def check_tasks(
    judged: EvaluationSpec | None,
    open_store: Callable[[str], ReadableStore],
    *,
    downloads: bool,
) -> None:
    """Check that a job's tasks are known, and that their data may be had.

    Args:
        judged: What the job names them in; None: nothing.
        open_store: Opens the store of the task files.
        downloads: Whether data of the harness's own tasks may come from a hub.

    Raises:
        InvalidSpec: a task is not known, needs a hub, or its file says what is not allowed.
        InvalidText: a file of data is missing or too large.
        StorageError: the store refused or failed.
    """
    if judged is None or not judged.tasks:
        return
    own: Collection[str] = ()
    if judged.task_files is not None:
        with naming_field(FIELD):
            own = read_definitions(open_store(judged.task_files), judged.tasks)
    for name in judged.tasks:
        if name in own:
            continue
        if name not in harness_names():
            raise unknown_task(name, harness_names())
        check_download(name, downloads=downloads)


def check_download(name: str, *, downloads: bool) -> None:
    """Check that the data of a task of the harness may come from a hub.

    Raises:
        InvalidSpec: they may not.
    """
    if not downloads:
        raise InvalidSpec(
            f"the data of task {name} come from a hub, which tasks may not use here",
            field=_TASKS,
            remedy="Put a task file with its data into storage and name its place in "
            "evaluation.task_files, or ask the operator for STRUCPRUNE_TASK_DOWNLOADS.",
        )


def task_file_versions(spec: JobSpec, open_store: Callable[[str], ReadableStore]) -> str | None:
    """One version of all files that a job's tasks are read from; None if there are none."""
    judged = spec.evaluation
    if judged is None or judged.task_files is None:
        return None
    with naming_field(FIELD):
        store = open_store(judged.task_files)
        found = read_definitions(store, judged.tasks)
        names = [f"{name}.yaml" for name in found]
        for each in found.values():
            names += each.dataset_kwargs.data_files.values()
        infos = [store.stat(name) for name in sorted(set(names))]
        versions = [None if info is None else version_of(store, info) for info in infos]
    return sha256_of_bytes(json.dumps(versions).encode())
