"""Arguments and options that several commands take. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Directory, s3://bucket/prefix or hf://org/name[@revision] with config.json, "
        "tokenizer.json and safetensors.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="[auto|cpu|cuda|cuda:N]",
        help="Where tensors are computed; cuda:1: the GPU of that number; auto: a GPU if there is "
        "one.",
    ),
]


def whole_number(unit: str, text: str, *, least: int = 1) -> Any:
    """An option that takes a whole number.

    Args:
        unit: What help shows in its place.
        text: What it is for.
        least: The smallest that is accepted.
    """
    return typer.Option(metavar=unit, help=text, parser=_at_least(least, int, "a whole number"))


def positive_number(unit: str, text: str) -> Any:
    """An option that takes a number of at least 0; arguments as of `whole_number`."""
    return typer.Option(metavar=unit, help=text, parser=_at_least(0, float, "a number"))


def _at_least(least: int, kind: type[int] | type[float], noun: str) -> Callable[[Any], int | float]:
    def parse(given: Any) -> int | float:
        try:
            number = kind(given)
        except ValueError:
            raise typer.BadParameter(f"'{given}' is not {noun}.") from None
        if not least <= number < math.inf:
            raise typer.BadParameter(f"{given} is not at least {least}.")
        return number

    return parse
