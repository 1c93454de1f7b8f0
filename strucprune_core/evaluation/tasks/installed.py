"""Whether lm-evaluation-harness is installed. No torch, and the harness is not imported."""

from __future__ import annotations

from importlib.util import find_spec

from strucprune_core.errors import InvalidSpec


def check_installed() -> None:
    """Refuse tasks where the harness is not installed.

    Raises:
        InvalidSpec: it is not.
    """
    if find_spec("lm_eval") is None:
        raise InvalidSpec(
            "tasks need lm-evaluation-harness, which is not installed",
            field="evaluation.tasks",
            remedy="Install it: pip install 'strucprune[tasks]'.",
        )
