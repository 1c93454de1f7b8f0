"""`strucprune evaluate`: perplexity and tasks of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from strucprune_core.commands.arguments import DeviceOption, ModelArgument, whole_number
from strucprune_core.commands.console import JsonOption, progress_bar
from strucprune_core.commands.failures import failures
from strucprune_core.commands.tables import show


def evaluate(
    model: ModelArgument,
    text: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Text (UTF-8); windows are taken from its start."),
    ] = None,
    sequences: Annotated[int, whole_number("NUMBER", "Windows of the text.")] = 24,
    sequence_length: Annotated[int, whole_number("TOKENS", "Tokens per window.", least=8)] = 1024,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Tasks of lm-evaluation-harness, whose data it downloads, or of --task-files.",
        ),
    ] = None,
    task_files: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Directory, s3:// or hf:// prefix with task files."),
    ] = None,
    limit: Annotated[
        int | None,
        whole_number("NUMBER", "Documents of each task, from the first. By default all."),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        whole_number(
            "NUMBER",
            "Examples before each document of a task. By default as the task says.",
            least=0,
        ),
    ] = None,
    device: DeviceOption = "auto",
    micro_batch_tokens: Annotated[
        int, whole_number("TOKENS", "Tokens pushed through a layer at a time.", least=8)
    ] = 4096,
    as_json: JsonOption = False,
) -> None:
    """Judge a model by perplexity, tasks, or both.

    One layer is in memory at a time. Each window of a text is scored on its own. Tasks need
    lm-evaluation-harness: pip install 'strucprune[tasks]'.
    """
    from strucprune_core.errors import InvalidSpec

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    with failures(as_json):
        if text is None and not names:
            raise InvalidSpec(
                "there is nothing to judge by", remedy="Give --text, --tasks or both."
            )
        with progress_bar() as bar:
            task = bar.add_task("evaluating", total=1.0)
            result: dict[str, Any] = {"model": model}
            if text is not None:
                from strucprune_core.evaluation.standalone import evaluate_model

                result = evaluate_model(
                    model,
                    text,
                    sequences=sequences,
                    sequence_length=sequence_length,
                    device=device,
                    micro_batch_tokens=micro_batch_tokens,
                    tick=lambda share: bar.update(task, completed=share),
                )
            if names:
                from strucprune_core.evaluation.tasks.standalone import evaluate_tasks

                bar.update(task, total=None, description="evaluating tasks")
                result["tasks"] = evaluate_tasks(
                    model,
                    names,
                    task_files=task_files,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    device=device,
                    micro_batch_tokens=micro_batch_tokens,
                )
        _show_evaluation(result, as_json)


def _show_evaluation(result: dict[str, Any], as_json: bool) -> None:
    """The result; for people, tasks as a table below the rest."""
    if as_json:
        show(result, as_json)
        return
    show({name: value for name, value in result.items() if name != "tasks"}, as_json)
    if "tasks" in result:
        from strucprune_core.commands.report_tables import show_tasks
        from strucprune_core.report.document import TaskScores

        show_tasks([TaskScores.model_validate(each) for each in result["tasks"]])
