"""`strucprune convert`: a pickled model as safetensors."""

from __future__ import annotations

from typing import Annotated

import typer

from strucprune_core.commands.console import JsonOption, progress_bar
from strucprune_core.commands.failures import failures
from strucprune_core.commands.tables import show


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Model with pytorch_model.bin: directory, s3:// or hf://."
        ),
    ],
    output: Annotated[
        str, typer.Argument(metavar="DST", help="Where the safetensors go; must be empty.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Write a pickled model (.bin) as safetensors. Code in the pickle is refused, never run."""
    from strucprune_core.conversion import convert as run
    from strucprune_core.scratch.directories import scratch_directory
    from strucprune_core.storage.open import open_store

    with failures(as_json), scratch_directory() as scratch:
        with progress_bar() as bar:
            task = bar.add_task("converting", total=1.0)
            result = run(
                open_store(source),
                open_store(output),
                scratch,
                tick=lambda share: bar.update(task, completed=share),
            )
        show(result, as_json)
