"""`strucprune completion`: a script with which a shell completes commands and options. No torch."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

PROGRAM = "strucprune"
# The framework writes the script if it finds this variable.
_VARIABLE = f"_{PROGRAM.upper()}_COMPLETE"


class Shell(StrEnum):
    """A shell that scripts are written for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def _shell(given: str) -> Shell:
    try:
        return Shell(given)
    except ValueError:
        raise typer.BadParameter(f"'{given}' is none of {', '.join(Shell)}.") from None


def completion(
    context: typer.Context,
    shell: Annotated[
        Shell,
        typer.Argument(
            metavar="SHELL",
            help="bash, zsh or fish.",
            parser=_shell,
            autocompletion=lambda incomplete: [
                each for each in Shell if each.startswith(incomplete)
            ],
        ),
    ],
) -> None:
    """Print a script that completes commands in a shell.

    For bash, add the line of the first example to ~/.bashrc; for zsh, the same with zsh to ~/.zshrc
    after compinit; for fish, write the script to the file of the second example.
    """
    os.environ[_VARIABLE] = f"source_{shell}"
    try:
        context.find_root().command.main(args=[], prog_name=PROGRAM, complete_var=_VARIABLE)
    finally:
        del os.environ[_VARIABLE]
