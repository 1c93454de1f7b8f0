"""Help in sections: what a command does, examples, then options under headings. No torch.

Plain text on purpose: it can be searched, copied, and read aloud.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

OPTIONS_HEADING = "Options"


class SectionedCommand(TyperCommand):
    """A command whose help has examples, and options under their headings.

    The examples are its epilogue, one a line; headings are the options' `rich_help_panel`.
    """

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write what the command does, and examples."""
        super().format_help_text(ctx, formatter)
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments by their names; one that may be left out is in brackets."""
        return [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Nothing: examples stand above the options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_heading(each), []).append((_name(each, record[0]), record[1]))
        last = sections.pop(OPTIONS_HEADING, [])
        for heading, records in [*sections.items(), (OPTIONS_HEADING, last)]:
            with formatter.section(heading):
                formatter.write_dl(records)


def _name(parameter: Any, shown: str) -> str:
    """How a parameter is written; of an argument without its type, which says nothing more."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    return shown


def _heading(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or OPTIONS_HEADING


def add_command(
    app: typer.Typer, command: Callable[..., None], *examples: str, name: str | None = None
) -> None:
    """Give a program a command.

    Args:
        app: The program.
        command: What the command does; its docstring is the help.
        examples: Lines that can be copied.
        name: Of the command; None for that of the function.
    """
    app.command(name=name, cls=SectionedCommand, epilog="\n".join(examples))(command)
