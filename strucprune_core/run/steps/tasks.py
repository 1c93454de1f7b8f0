"""`tasks.dense`, `tasks.pruned`: what a model makes of tasks, and whether pruning ruined it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.metadata import version

from strucprune_core.errors import InvalidSpec, QualityCollapsed, naming_field
from strucprune_core.models.streaming import ModelStream
from strucprune_core.plan.graph import Unit
from strucprune_core.plan.task_memory import context_of, task_tokens
from strucprune_core.plan.tasks import check_download
from strucprune_core.report.document import TaskScores
from strucprune_core.report.task_retention import judged_pairs, retention
from strucprune_core.run.artifacts import Tasks, TasksValues
from strucprune_core.run.context import Job
from strucprune_core.run.workspace import Draft
from strucprune_core.run.written_checkpoint import reopened
from strucprune_core.spec import EvaluationSpec

# Calls of a tick while a model is given so many tokens: for the progress alone.
_TOKENS_A_TICK = 50_000


def tasks(job: Job, unit: Unit, draft: Draft) -> None:
    """Run the tasks on the dense or the pruned model, streamed; writes no file.

    Raises:
        InvalidSpec: a task cannot be run, or the gate cannot judge by them.
        InvalidText: the data changed between the models.
        QualityCollapsed: the pruned model keeps too little, and there is no other size.
    """
    evaluation = job.spec.evaluation
    assert evaluation is not None  # noqa: S101 - else the graph has no such unit
    if unit.name == Tasks("dense").unit:
        found = _run(job, evaluation, job.dense)
        _check_judgeable(evaluation, found.scores)
    else:
        found = _run(job, evaluation, reopened(job)[1])
        dense = job.units.values(Tasks("dense"))
        _check_same_requests(dense, found)
        try:
            _check_kept(evaluation, dense, found)
        except QualityCollapsed as error:
            if not job.size:
                raise
            found = replace(found, rejected=error.message)  # The other sizes may be good.
    draft.record(found)


def _run(job: Job, evaluation: EvaluationSpec, stream: ModelStream) -> TasksValues:
    # The harness and what it imports take seconds and 250 MB: only where tasks are run.
    from strucprune_core.evaluation.tasks.opened import answers_of
    from strucprune_core.evaluation.tasks.run import run_tasks
    from strucprune_core.evaluation.tasks.task_files import read_task_files

    own = {}
    if evaluation.task_files is not None:
        with naming_field("evaluation.task_files"):
            own = read_task_files(job.open_store(evaluation.task_files), evaluation.tasks)
    names = [name for name in evaluation.tasks if name not in own]
    for name in names:
        check_download(name, downloads=job.task_downloads)
    total = max(1, job.config.layers * task_tokens(job.spec) // _TOKENS_A_TICK)
    done = itertools.count(1)
    with answers_of(
        stream,
        job.index,
        job.scratch,
        tick=lambda: job.tick(min(next(done), total), total),
        context_tokens=context_of(job.config),
    ) as answers:
        scores = run_tasks(
            answers,
            names,
            limit=evaluation.limit,
            num_fewshot=evaluation.num_fewshot,
            own=list(own.values()),
        )
        cut = answers.cut.requests
    return TasksValues(version("lm_eval"), [each.model_dump(mode="json") for each in scores], cut)


def task_scores(values: TasksValues) -> list[TaskScores]:
    """The scores that a unit has recorded."""
    return [TaskScores.model_validate(each) for each in values.scores]


def _check_judgeable(evaluation: EvaluationSpec, scores: list[dict[str, object]]) -> None:
    """Refuse a gate that chance would decide, before any heavy work."""
    if evaluation.min_task_retention is None:
        return
    dense = [TaskScores.model_validate(each) for each in scores]
    if not judged_pairs(dense, dense):
        raise InvalidSpec(
            "the dense model is not better than chance at any of the tasks, by two standard errors",
            field="evaluation.min_task_retention",
            remedy="Choose easier tasks, judge more documents, or leave min_task_retention out.",
        )


def _check_same_requests(dense: TasksValues, pruned: TasksValues) -> None:
    asked = [[each.requests_sha256 for each in task_scores(both)] for both in (dense, pruned)]
    if asked[0] != asked[1]:
        raise InvalidSpec(
            "the data of a task changed between the dense and the pruned model",
            field="evaluation.tasks",
            remedy="Start the job again, or retry it with a new workspace.",
        )


def _check_kept(evaluation: EvaluationSpec, dense: TasksValues, pruned: TasksValues) -> None:
    least = evaluation.min_task_retention
    if least is None:
        return
    kept = retention(task_scores(dense), task_scores(pruned))
    if kept is None or kept < least:
        shown = "nothing" if kept is None else f"{kept:.1%}"
        raise QualityCollapsed(
            f"of the dense model's accuracy above chance, {shown} is kept, less than {least:.1%}; "
            "nothing was published",
            field="pruning.sparsity",
            remedy="Lower pruning.sparsity, use more calibration text, or lower "
            "evaluation.min_task_retention if you want the model all the same.",
        )
