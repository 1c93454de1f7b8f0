"""Tables and lists of facts, printed whole: no value is cut or folded. No torch.

Where a terminal is too narrow it breaks the line itself, so that an id can still be copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from strucprune_core.commands import figures
from strucprune_core.commands.console import print_json
from strucprune_core.report.visible_text import visible

_GAP = 2


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print a result: JSON, or a fact a line with numbers for people."""
    if as_json:
        print_json(result)
    else:
        print_facts({key.replace("_", " "): shown(key, each) for key, each in result.items()})


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, one a line.

    Args:
        facts: Values by name; a value may come from outside.
    """
    width = max(map(cell_len, facts), default=0)
    for name, value in facts.items():
        _print(Text.assemble((_padded(name, width), "dim"), " " * _GAP, visible(value, keeping="")))


def print_heading(text: str) -> None:
    """Print a line that begins a section."""
    _print(Text(text, style="bold"))


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print rows under headings.

    Args:
        headings: Of the columns.
        rows: Their cells; a cell may come from outside.
        right: Headings of columns that hold numbers, whose ends are aligned.
    """
    lines = [[visible(cell, keeping="") for cell in row] for row in rows]
    columns = list(zip(headings, *lines, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    for at, line in enumerate([list(headings), *lines]):
        cells = [
            _padded(cell, width, at_end=heading in right)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        text = (" " * _GAP).join(cells).rstrip()
        _print(Text(text, style="bold" if at == 0 else ""))


def print_records(records: Sequence[Mapping[str, str]], *, right: Sequence[str] = ()) -> None:
    """Print a line for each record, without columns that none has a value in.

    Args:
        records: At least one; all have the same names.
        right: Names of columns that hold numbers.
    """
    headings = [name for name in records[0] if any(record[name] for record in records)]
    print_table(headings, [[record[name] for name in headings] for record in records], right=right)


def shown(key: str, value: object) -> str:
    """A value as people read it, by the unit that its name ends with."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if key.endswith("bytes"):
            return figures.size(value)
        if key.endswith("seconds"):
            return figures.duration(value)
        return figures.count(value) if isinstance(value, int) else figures.number(value, 5)
    return "-" if value is None else str(value)


def _padded(text: str, width: int, *, at_end: bool = False) -> str:
    fill = " " * (width - cell_len(text))
    return fill + text if at_end else text + fill


def _print(line: Text) -> None:
    Console().print(line, soft_wrap=True, highlight=False)
