"""Numbers as text for people: short, with units, or a word where there is no number. No torch."""

from __future__ import annotations

import math

NBSP = "\u00a0"
_DAY = (86400.0, "day")
MINUS = "\u2212"
ABSENT = "\u2013"  # Does not apply, or is not finite.
UNKNOWN = "unknown"  # Could not be measured: `None` in the report.

_COUNT_UNITS = ("", "K", "M", "B", "T")
_FLOP_UNITS = ("", "K", "M", "G", "T", "P")
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: float) -> str:
    """A count of things: `46,080`, then `134.5 M`."""
    if not math.isfinite(value):
        return ABSENT
    if abs(value) < 100_000:
        return f"{value:,.0f}".replace("-", MINUS)
    return _scaled(value, _COUNT_UNITS, digits=4)


def flops(value: float) -> str:
    """Operations with SI prefixes: `269 M`, `2.41 G`."""
    return _scaled(value, _FLOP_UNITS, digits=4)


def size(value: float) -> str:
    """Bytes in decimal units: `269 MB`."""
    return _scaled(value, _BYTE_UNITS, digits=3)


def number(value: float | None, digits: int = 4, none: str = UNKNOWN) -> str:
    """A real number with `digits` significant digits: `23.49`, `2.31×10⁻⁵`; or `none` for None."""
    if value is None:
        return none
    if not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -5 < power < 6:
        text = f"{value:,.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{mantissa}×10{str(power).translate(_SUPERSCRIPTS)}"
    return text.replace("-", MINUS)


def tick(value: float) -> str:
    """An axis label: as short as can be: `0.25`, `1,500`, `2.5×10⁻⁵`."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        lead = mantissa.removesuffix(".0")
        text = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return (text if lead == "1" else f"{lead}×{text}").replace("-", MINUS)
    return f"{value:,.6f}".rstrip("0").rstrip(".").replace("-", MINUS)


def share(part: float, whole: float) -> str:
    """What share of the whole a part is, as `percent`; absent where the whole is nothing."""
    return percent(part / whole) if whole else ABSENT


def exact(value: float) -> str:
    """All digits: `134,515,008`."""
    return f"{value:,.0f}" if math.isfinite(value) else ABSENT


def percent(fraction: float, digits: int = 1) -> str:
    """A share: 0.3 is `30.0%`."""
    if not math.isfinite(fraction):
        return ABSENT
    return f"{100 * fraction:.{digits}f}%".replace("-", MINUS)


def change(before: float, after: float) -> str:
    """The relative change with its sign: `−17.8%`, `+4.2%`; `±0%` where nothing changed."""
    if not before or not math.isfinite(before) or not math.isfinite(after):
        return ABSENT
    ratio = after / before
    if ratio >= 10:
        return f"×{number(ratio, 3)}"
    text = f"{100 * (ratio - 1):+.1f}%"
    return "±0%" if text in ("+0.0%", "-0.0%") else text.replace("-", MINUS)


def duration(seconds: float) -> str:
    """A span of time: `840 ms`, `12.3 s`, `4 min 05 s`, `1 h 12 min`."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}{NBSP}ms" if seconds else f"0{NBSP}s"
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min{NBSP}{rest:02d}{NBSP}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{NBSP}h{NBSP}{minutes:02d}{NBSP}min"


def span(least: float, most: float) -> str:
    """A range of time, coarser the longer it is: `4 to 7 minutes`, `up to 2 hours`."""
    limits = ((90.0, 1.0, "second"), (5400.0, 60.0, "minute"), (172800.0, 3600.0, "hour"))
    unit, name = next(((each, name) for limit, each, name in limits if most < limit), _DAY)
    low, high = math.floor(least / unit), max(1, math.ceil(most / unit))
    end = f"{high}{NBSP}{name}{'' if high == 1 else 's'}"
    if low == high:
        return end
    return f"{low} to {end}" if low else f"up to {end}"


def _scaled(value: float, units: tuple[str, ...], digits: int) -> str:
    """`value` in the largest unit that leaves it at or above one, `digits` significant digits."""
    if not math.isfinite(value):
        return ABSENT
    step = 0
    while step + 1 < len(units) and round(abs(value), max(0, digits - 3)) >= 1000:
        value /= 1000
        step += 1
    whole = len(str(int(abs(value))))
    text = f"{value:,.{max(0, digits - whole) if step else 0}f}"
    if digits < 4 and "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text}{NBSP}{units[step]}".rstrip().replace("-", MINUS)
