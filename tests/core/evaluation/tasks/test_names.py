"""The table of the harness's names is that of the installed release."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from strucprune_core.plan.tasks import NAMES_FILE, harness_names

pytest.importorskip("lm_eval")


def test_the_table_is_made_with_the_installed_release() -> None:
    from lm_eval.tasks import TaskManager

    head, *_ = NAMES_FILE.read_text().splitlines()
    assert f"lm-evaluation-harness {version('lm_eval')}." in head
    assert harness_names() == set(TaskManager().all_tasks)
