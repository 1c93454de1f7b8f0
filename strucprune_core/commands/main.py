"""The `strucprune` command: all subcommands and the options before them.

Each command is a module of its own here; `console` holds what all of them share. A module of a
command loads quickly: what takes long (torch, httpx, boto3) is imported when the command runs, so
that `--help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

from strucprune_core import __version__
from strucprune_core.commands import jobs, keys
from strucprune_core.commands.bench_device import bench_device
from strucprune_core.commands.completion import PROGRAM, completion
from strucprune_core.commands.console import stderr
from strucprune_core.commands.convert import convert
from strucprune_core.commands.estimate import estimate
from strucprune_core.commands.evaluate import evaluate
from strucprune_core.commands.help import add_command
from strucprune_core.commands.inspect_model import inspect
from strucprune_core.commands.prune import prune
from strucprune_core.commands.publish import publish
from strucprune_core.commands.verify import verify

app = typer.Typer(
    name=PROGRAM,
    help="Make a large language model smaller and faster: FFN channels, attention heads, experts "
    "or layers are removed and the rest is repaired, one decoder layer in memory at a time.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
add_command(
    app,
    inspect,
    "strucprune inspect ./model",
    "strucprune inspect hf://org/name --json",
)
add_command(
    app,
    estimate,
    "strucprune estimate ./model --sparsity 0.3",
    "strucprune estimate ./model --target-bytes 2GB --structure ffn_channels --structure kv_groups",
)
add_command(
    app,
    prune,
    "strucprune prune ./model --output ./smaller --sparsity 0.3 --calibration text.txt",
    "strucprune prune ./model --output ./smaller --target-parameters 100M --calibration self",
    "strucprune prune ./model --output ./sizes --size 0.2 --size 0.4 --calibration text.txt "
    "--evaluation other.txt",
)
add_command(
    app,
    evaluate,
    "strucprune evaluate ./smaller --text other.txt",
    "strucprune evaluate ./smaller --tasks piqa,lambada_openai --limit 200",
)
add_command(app, bench_device, "strucprune bench-device --output laptop.json", name="bench-device")
add_command(app, verify, "strucprune verify ./smaller")
add_command(app, convert, "strucprune convert ./pickled-model ./model")
add_command(app, publish, "strucprune publish ./smaller hf://org/smaller")
add_command(
    app,
    completion,
    'eval "$(strucprune completion bash)"',
    "strucprune completion fish > ~/.config/fish/completions/strucprune.fish",
)
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"strucprune {__version__}\n")
        raise typer.Exit


@app.callback()
def _options_of_all_commands(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    handler = RichHandler(console=stderr, show_path=False, show_level=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def main() -> None:
    """Entry point of the command."""
    app(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
