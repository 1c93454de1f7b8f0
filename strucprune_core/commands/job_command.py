"""Gives commands the options of a job. No torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from strucprune_core.commands.job_body import job_body
from strucprune_core.commands.job_option_help import (
    choices_of,
    heading_of,
    help_of,
    metavar_of,
    order_of,
)
from strucprune_core.commands.job_options import OPTIONS, JobOption, Path_
from strucprune_core.errors import InvalidSpec

_MODEL: Path_ = ("model", "uri")

JobBody = Callable[[], dict[str, Any]]
"""Reads the specification that a command was given; may raise `InvalidSpec`."""


def takes_job(*, service: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a model and the options of a job; it gets a `body: JobBody` of them.

    Args:
        service: Whether the job is for a service, so that options are there for what only a
            service uses.
    """
    options = sorted(
        (option for option in OPTIONS if service or not option.for_services),
        key=order_of,
    )
    shared = [
        _keyword("model", Annotated[str | None, _MODEL_ARGUMENT], None),
        *(_parameter(option) for option in options),
        _keyword("spec", Annotated[str | None, _SPEC_OPTION], None),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*, model: str | None, spec: str | None, **given: Any) -> None:
            values = {option.path: given.pop(option.parameter) for option in options}
            command(body=lambda: job_body(spec, _with_model(values, model)), **given)

        hints = get_type_hints(command, include_extras=True)
        own = [
            _keyword(each.name, hints[each.name], each.default)
            for each in inspect.signature(command).parameters.values()
            if each.name != "body"
        ]
        # Typer reads options off a function's signature, so this one is put together here.
        run.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in (*shared, *own)}
        return run

    return decorate


_MODEL_ARGUMENT = typer.Argument(
    metavar="MODEL",
    show_default=False,
    help="The model to prune: a directory, s3://bucket/prefix or hf://org/name[@revision] with "
    "config.json, tokenizer.json and safetensors. --model means the same.",
)
_SPEC_OPTION = typer.Option(
    "--spec",
    metavar="FILE",
    show_default=False,
    help="The job as JSON, as REST takes it; - reads standard input. Options that are "
    "given beside it take precedence.",
)


def _with_model(values: dict[Path_, Any], model: str | None) -> dict[Path_, Any]:
    """The options, with the model that the argument names.

    Raises:
        InvalidSpec: `--model` names one too.
    """
    if model is None:
        return values
    if values[_MODEL] is not None:
        raise InvalidSpec("the model is given twice", field="MODEL", remedy="Leave --model out.")
    return {**values, _MODEL: model}


def _parameter(option: JobOption) -> inspect.Parameter:
    """An option as a parameter of a command: None where it is not given."""
    negative = f"/--no-{option.name}" if option.kind is bool else ""
    shown = typer.Option(
        f"--{option.name}{negative}",
        help=help_of(option),
        metavar=metavar_of(option),
        show_default=False,
        rich_help_panel=heading_of(option),
        autocompletion=_completed(choices_of(option)),
    )
    kind = list[str] if option.is_list else bool if option.kind is bool else str
    return _keyword(option.parameter, Annotated[kind | None, shown], None)


def _completed(choices: tuple[str, ...]) -> Callable[[str], list[str]] | None:
    """Which choices begin with what is typed; None leaves completion to the shell."""
    if not choices:
        return None
    return lambda incomplete: [each for each in choices if each.startswith(incomplete)]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter of a command, by keyword."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
