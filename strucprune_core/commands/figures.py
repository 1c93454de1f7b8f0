"""Numbers for people, as the report shows them, in characters that every terminal has. No torch.

`--json` has the exact ones.
"""

from __future__ import annotations

from strucprune_core.report import numbers

_IN_A_TERMINAL = str.maketrans({numbers.NBSP: " ", numbers.MINUS: "-", numbers.ABSENT: "-"})


def count(value: float) -> str:
    """A count of things: `46,080`, then `134.5 M`."""
    return _plain(numbers.count(value))


def size(value: float) -> str:
    """Bytes in decimal units: `269 MB`."""
    return _plain(numbers.size(value))


def flops(value: float) -> str:
    """Floating-point operations: `2.41 G`."""
    return _plain(numbers.flops(value))


def number(value: float | None, digits: int = 4) -> str:
    """A real number with some significant digits; `-` where there is none."""
    return _plain(numbers.number(value, digits, none=numbers.ABSENT))


def percent(fraction: float) -> str:
    """A share: 0.3 is `30.0%`."""
    return _plain(numbers.percent(fraction))


def change(before: float, after: float) -> str:
    """The relative change with its sign: `-17.8%`."""
    return _plain(numbers.change(before, after)).replace("±", "")


def duration(seconds: float) -> str:
    """A span of time: `12.3 s`, `3 min 20 s`."""
    return _plain(numbers.duration(seconds))


def span(least: float, most: float) -> str:
    """A range of time: `4 to 7 minutes`."""
    return _plain(numbers.span(least, most))


def from_to(before: str, after: str, changed: str = "") -> str:
    """What something was and has become: `134.5 M -> 118.6 M (-11.8%)`."""
    return f"{before} -> {after}" + (f" ({changed})" if changed else "")


def counts(before: float, after: float) -> str:
    """`from_to` of two counts."""
    return from_to(count(before), count(after), change(before, after))


def sizes(before: float, after: float) -> str:
    """`from_to` of two sizes in bytes."""
    return from_to(size(before), size(after), change(before, after))


def _plain(text: str) -> str:
    return text.translate(_IN_A_TERMINAL)
