"""`strucprune verify`: whether a pruned checkpoint is whole and loads."""

from __future__ import annotations

from typing import Annotated

import typer

from strucprune_core.commands.console import JsonOption
from strucprune_core.commands.failures import failures
from strucprune_core.commands.tables import show


def verify(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A pruned checkpoint: directory, s3:// or hf://.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check a pruned checkpoint.

    The digest of every file, the tensors, and whether transformers loads it.
    """
    from strucprune_core.evaluation.standalone import verify_checkpoint

    with failures(as_json):
        show(verify_checkpoint(directory), as_json)
