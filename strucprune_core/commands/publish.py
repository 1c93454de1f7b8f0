"""`strucprune publish`: a finished result on a hub. No torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from strucprune_core.commands.console import JsonOption, progress_bar
from strucprune_core.commands.failures import failures
from strucprune_core.commands.tables import show


def publish(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Output of a finished job: directory or s3://.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Repository of a hub: hf://org/name.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it. A new one is private.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove what the repository holds of another model.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a finished result to a Hugging Face hub, as one commit.

    The token is that of `huggingface_hub`: HF_TOKEN, or `hf auth login`.
    """
    from strucprune_core.errors import InvalidSpec
    from strucprune_core.run.publish_to_hub import publish_to_hub
    from strucprune_core.scratch.directories import scratch_directory
    from strucprune_core.storage.open import open_store
    from strucprune_core.storage.uri import parse_uri

    with failures(as_json), scratch_directory() as scratch:
        if not target.startswith("hf://"):
            raise InvalidSpec(
                f"'{target}' is no repository of a hub",
                field="TARGET",
                remedy="Write it as hf://org/name.",
            )
        try:
            place = parse_uri(target)
        except ValueError as error:
            raise InvalidSpec(str(error), field="TARGET") from error
        with progress_bar() as bar:
            task = bar.add_task("publishing", total=1.0)
            result = publish_to_hub(
                open_store(directory),
                place,
                scratch,
                public=public,
                replace=replace,
                tick=lambda done, total: bar.update(task, completed=done / total),
            )
        show(asdict(result), as_json)
