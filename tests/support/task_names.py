"""Writes the table of the harness's names, by which jobs are checked without the harness."""

from __future__ import annotations

from importlib.metadata import version

from strucprune_core.plan.tasks import NAMES_FILE


def main() -> None:
    """Read the index of the installed harness, which takes some seconds."""
    from lm_eval.tasks import TaskManager

    head = (
        f"# Tasks, groups and tags of lm-evaluation-harness {version('lm_eval')}. "
        "Made by: python -m tests.support.task_names"
    )
    NAMES_FILE.write_text("\n".join([head, *sorted(TaskManager().all_tasks)]) + "\n")


if __name__ == "__main__":
    main()
