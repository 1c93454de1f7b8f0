"""Runs tasks of lm-evaluation-harness on a model that answers requests.

The harness is imported here and in `harness_model` only: it takes seconds and 250 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from strucprune_core.errors import InvalidSpec, StrucPruneError
from strucprune_core.evaluation.tasks.answers import FIELD, Answers
from strucprune_core.evaluation.tasks.installed import check_installed
from strucprune_core.evaluation.tasks.task_files import OwnTask
from strucprune_core.plan.tasks import unknown_task
from strucprune_core.report.document import TaskMetric, TaskScores

# Draws for standard errors that have no formula (perplexity), which give them to a few per cent.
# The harness takes 100,000, which needs more processor time than a small model.
BOOTSTRAP_DRAWS = 1000
_SEED = 1234
_log = logging.getLogger(__name__)


def run_tasks(
    answers: Answers,
    names: Sequence[str],
    *,
    limit: int | None,
    num_fewshot: int | None,
    own: Sequence[OwnTask] = (),
) -> list[TaskScores]:
    """Scores of a model, task by task.

    Args:
        answers: The model.
        names: Tasks, groups and tags of the harness. It downloads what data they need.
        limit: Documents of each task, from the first; all if None.
        num_fewshot: Examples before each document; as the task says if None.
        own: Tasks of task files.

    Raises:
        InvalidSpec: a task is not known, cannot be prepared, or asks for what is not supported.
        StrucPruneError: see `errors`.
    """
    check_installed()
    with _quiet_harness():
        loaded = [*_loaded(names), *(each.as_harness_task() for each in own)]
        _check_examples(loaded, num_fewshot)
        results = _evaluated(answers, loaded, limit, num_fewshot)
    if answers.cut.requests:
        _log.warning(
            "%d requests were longer than %d tokens and lost their beginning",
            answers.cut.requests,
            answers.context_tokens,
        )
    return [_scores(task, results) for task in loaded]


def _loaded(names: Sequence[str]) -> list[Any]:
    """The harness's tasks of these names; of groups and tags all that belong to them."""
    if not names:
        return []
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known = manager.all_tasks
    for name in names:
        if name not in known:
            raise unknown_task(name, known)
    _log.info("tasks: the data of %s is read from the hub, or from its cache", ", ".join(names))
    try:
        return list(manager.load(list(names))["tasks"].values())
    except Exception as error:  # Whatever a task, or the library that reads its data, raises.
        raise InvalidSpec(
            f"the harness cannot prepare {', '.join(names)}: {_reason(error)}",
            field=FIELD,
            remedy="Check that its data can be downloaded or is in the cache of the hub, or use "
            "task files.",
        ) from error


def _check_examples(tasks: Sequence[Any], num_fewshot: int | None) -> None:
    """The harness would keep 0 where a task insists on it: that is said instead."""
    for task in tasks:
        if num_fewshot and task.get_config("num_fewshot") == 0:
            raise InvalidSpec(
                f"the task {task.task_name} is defined without examples",
                field="evaluation.num_fewshot",
                remedy="Leave num_fewshot out, or leave this task out.",
            )


def _evaluated(
    answers: Answers, tasks: Sequence[Any], limit: int | None, num_fewshot: int | None
) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from strucprune_core.evaluation.tasks.harness_model import AnsweringModel

    try:
        return simple_evaluate(
            model=AnsweringModel(answers),
            tasks=list(tasks),
            task_manager=TaskManager(include_defaults=False),  # Else it reads its 15,000 files.
            limit=limit,
            num_fewshot=num_fewshot,
            bootstrap_iters=BOOTSTRAP_DRAWS,
            log_samples=False,
            # The process's generators are left as they are: only examples are drawn.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=_SEED,
        )
    except (StrucPruneError, MemoryError):
        raise
    except Exception as error:  # Whatever a task makes of a document or an answer.
        names = ", ".join(task.task_name for task in tasks)
        raise InvalidSpec(
            f"the harness fails on {names}: {_reason(error)}",
            field=FIELD,
            remedy="Leave the task out, or correct its definition.",
        ) from error


def _scores(task: Any, results: Any) -> TaskScores:
    name = task.task_name
    found = results["results"][name]
    counts = results["n-samples"][name]
    better = results.get("higher_is_better", {}).get(name, {})
    metrics = []
    for key, value in found.items():
        metric, comma, variant = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{metric}_stderr,{variant}")
        metrics.append(
            TaskMetric(
                name=metric if variant == "none" else key,
                value=float(value),
                standard_error=_known(error),
                higher_is_better=better.get(metric),
            )
        )
    return TaskScores(
        task=name,
        version=str(results["versions"].get(name)),
        num_fewshot=int(results["n-shot"].get(name) or 0),
        documents=counts["effective"],
        available_documents=counts["original"],
        chance=_chance(task),
        metrics=metrics,
        requests_sha256=_digest(task.instances),
    )


def _known(error: Any) -> float | None:
    """A standard error that is a number: the harness writes "N/A" where it has none."""
    known = isinstance(error, int | float) and math.isfinite(error)
    return float(error) if known else None


def _chance(task: Any) -> float:
    """The mean of 1 / choices over the documents of a task with choices, else 0."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    # Some metrics ask for each choice twice, with and without the question.
    different = {(each.doc_id, each.args[1]) for each in task.instances}
    choices = Counter(document for document, _ in different)
    return sum(1.0 / count for count in choices.values()) / len(choices)


def _digest(instances: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for each in instances:
        digest.update(json.dumps([each.request_type, list(each.args)], default=str).encode())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


@contextlib.contextmanager
def _quiet_harness() -> Iterator[None]:
    """The harness prints to standard error, logs errors only, and starts no processes."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # A process that uses torch cannot fork safely.
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
