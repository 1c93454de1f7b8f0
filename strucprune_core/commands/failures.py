"""How commands fail: what is wrong and what to do, on lines of their own. No torch.

    error (invalid_spec): --sparsity: must be below 1 (got 1.5)
      Ask for less.

A field of a job is named as the option that sets it, where there is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.markup import escape

from strucprune_core.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, stderr
from strucprune_core.commands.job_options import option_of
from strucprune_core.errors import InvalidSpec, Stopped, StrucPruneError
from strucprune_core.report.visible_text import visible

# Options that are no field of a job: of prune, evaluate and jobs list.
_NOT_OF_A_JOB = ("workspace", "text", "state", "label")


@contextmanager
def failures(as_json: bool) -> Iterator[None]:
    """Show a failure as a readable message (or JSON) and exit with its code."""
    try:
        yield
    except StrucPruneError as error:
        _fail(error, as_json)


def _fail(error: StrucPruneError, as_json: bool) -> NoReturn:
    if as_json:
        sys.stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
    show_failure(error)
    usage = isinstance(error, InvalidSpec)
    stopped = isinstance(error, Stopped)
    raise typer.Exit(EXIT_INTERRUPTED if stopped else EXIT_USAGE if usage else EXIT_FAILED)


def show_failure(error: StrucPruneError) -> None:
    """Print what is wrong on a line, and what to do about it on the next."""
    wrong, *more = _problems(error)
    code = str(error.as_dict()["code"])  # Of a service's answer, the service's own.
    show_problem(code, f"{wrong}{_place(error)}", more, error.remedy)


def show_problem(
    code: str, wrong: str, more: Sequence[str] = (), remedy: str | None = None
) -> None:
    """Print a problem with its code, then what else there is to it, then what to do."""
    _print(f"[bold red]error[/] ({code}): ", _sentence(wrong))
    for line in more:
        _print("  ", line.strip())
    if remedy:
        _print("  ", _sentence(remedy))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", ":")) else f"{text}."


def _print(before: str, text: str) -> None:
    # Not wrapped: a terminal does that itself, and lines of a log stay whole.
    shown = escape(visible(text, keeping=""))
    stderr.print(before + shown, highlight=False, soft_wrap=True)


def _problems(error: StrucPruneError) -> list[str]:
    """What is wrong, one thing a line."""
    from strucprune_core.client.errors import ApiProblem

    if isinstance(error, ApiProblem) and error.problem.errors:
        found = [_at(each.pointer or each.parameter, each.detail) for each in error.problem.errors]
        return found if len(found) == 1 else [error.message.splitlines()[0], *found]
    wrong, *more = error.message.splitlines() or [type(error).__name__]
    return [_at(error.field, wrong), *more]


def _at(field: str | None, wrong: str) -> str:
    """A problem after the option that it is about, unless it begins with that itself."""
    name = option_name(field) if field else ""
    return f"{name}: {wrong}" if name and not wrong.startswith(name) else wrong


def option_name(field: str) -> str:
    """A field of a job as the option that sets it; another field as it is.

    Args:
        field: A dotted path, "pruning.sparsity", or a JSON pointer, "/pruning/sparsity".
    """
    if field in _NOT_OF_A_JOB:
        return f"--{field}"
    dotted = field.strip("/").replace("/", ".")
    path = tuple(dotted.split("."))
    while path:
        if option := option_of(path):
            return "MODEL" if option == "--model" else option
        path = path[:-1]  # An entry of a list: exports.0.
    return dotted


def _place(error: StrucPruneError) -> str:
    """The layer at fault and the phase of the job, if there is one."""
    if error.layer is None:
        return ""
    return f" (layer {error.layer}, {error.phase})" if error.phase else f" (layer {error.layer})"
