"""Gives commands the options of a job. No torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from strucprune_core.commands.job_body import job_body
from strucprune_core.commands.job_options import OPTIONS, keyword

JobBody = Callable[[], dict[str, Any]]
"""Reads the specification that a command was given; may raise `InvalidSpec`."""


def takes_job(*, service: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a model and the options of a job; it gets a `body: JobBody` of them.

    Args:
        service: Whether the job is for a service. Then there are options for what only a service
            uses, and the argument is a specification's file; else the argument is the model.
    """
    options = [option for option in OPTIONS if service or not option.for_services]
    shared = [option.as_parameter() for option in options]
    if not service:
        shared[0] = shared[0].replace(annotation=Annotated[str | None, _MODEL_ARGUMENT])
    spec_annotation = Annotated[str | None, _SPEC_ARGUMENT if service else _SPEC_OPTION]
    shared.append(keyword("spec", spec_annotation, None))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*, spec: str | None, **given: Any) -> None:
            values = {option.path: given.pop(option.parameter) for option in options}
            command(body=lambda: job_body(spec, values), **given)

        hints = get_type_hints(command, include_extras=True)
        own = [
            keyword(each.name, hints[each.name], each.default)
            for each in inspect.signature(command).parameters.values()
            if each.name != "body"
        ]
        # Typer reads options off a function's signature, so this one is put together here.
        run.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in (*shared, *own)}
        return run

    return decorate


_MODEL_ARGUMENT = typer.Argument(metavar="MODEL", show_default=False)
_SPEC_HELP = "The job as JSON, as REST takes it; - reads standard input. Options go before it."
_SPEC_OPTION = typer.Option("--spec", metavar="FILE", help=_SPEC_HELP)
_SPEC_ARGUMENT = typer.Argument(metavar="SPEC", show_default=False, help=_SPEC_HELP)
