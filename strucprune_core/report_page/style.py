"""What the HTML report is made of: safe text, numbers for people, and the style sheet. No torch."""

from __future__ import annotations

import html
import math
import re

NBSP = "\u00a0"
MINUS = "\u2212"
ABSENT = "\u2013"

_COUNT_UNITS = ("", "K", "M", "B", "T")
_FLOP_UNITS = ("", "K", "M", "G", "T", "P")
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Control characters are not XML, lone surrogates are not UTF-8, and direction overrides let one
# string disguise its neighbours: all are shown as U+FFFD.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def esc(value: object) -> str:
    """Escapes any value for element content and for quoted attributes.

    Args:
        value: What to show; its `str()` is taken.

    Returns:
        Text without markup, control characters, lone surrogates or direction overrides.
    """
    return html.escape(_UNSAFE.sub("\ufffd", str(value)), quote=True)


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


def number(value: float, digits: int = 4) -> str:
    """A real number with `digits` significant digits: `23.49`, `2.31×10⁻⁵`."""
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


def known_number(value: float | None, digits: int = 4) -> str:
    """The same of a number that may be unknown."""
    return "unknown" if value is None else number(value, digits)


def tick(value: float) -> str:
    """An axis label: as short as can be: `0.25`, `1,500`, `2.5×10⁻⁵`."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        lead = mantissa.removesuffix(".0")
        text = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return (text if lead == "1" else f"{lead}×{text}").replace("-", MINUS)
    return f"{value:,.6f}".rstrip("0").rstrip(".").replace("-", MINUS)


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


CSS = """
:root {
  color-scheme: light dark;
  --page: #f5f6f4; --card: #ffffff; --ink: #1d2627; --soft: #5a6668; --line: #e2e6e3;
  --grid: #e9ecea; --wash: #f3f5f3;
  --accent: #0f766e; --tint: #d5e6e2; --planned: #9ccbc3; --good: #0b6b57; --good-wash: #e1f2ec;
  --bad: #9a4a13; --bad-wash: #faecdd; --note: #7a5200; --note-wash: #fff6df; --note-line: #ecd8a0;
  --violet: #6556c4; --amber: #c2751a; --rose: #b8476a; --blue: #3b76b0;
  --p0: #8aa0a8; --p1: #3b76b0; --p2: #6556c4; --p3: #0f766e; --p4: #c2751a; --p5: #b8476a;
  --p6: #7a8f2a; --p7: #8b6a52;
  --shadow: 0 1px 2px rgb(20 40 40 / 5%), 0 6px 20px rgb(20 40 40 / 4%);
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #111617; --card: #191f21; --ink: #e5ebea; --soft: #9aa8a8; --line: #2a3335;
    --grid: #263032; --wash: #1f2729;
    --accent: #4fb8a8; --tint: #26423f; --planned: #2c6b62; --good: #79d3bb; --good-wash: #173630;
    --bad: #f0b27a; --bad-wash: #3b2918; --note: #f0d28a; --note-wash: #2d2616;
    --note-line: #574a26;
    --violet: #a298f0; --amber: #e3a457; --rose: #e68aa7; --blue: #7fb2e5;
    --p0: #7b9099; --p1: #6ba3da; --p2: #9d92ee; --p3: #4fb8a8; --p4: #e3a457; --p5: #e68aa7;
    --p6: #b4c763; --p7: #c09c82;
    --shadow: none;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 48px; }
footer { padding-top: 8px; padding-bottom: 48px; color: var(--soft); font-size: 13px; }
h1 {
  margin: 4px 0 6px; font-size: clamp(26px, 5vw, 38px); line-height: 1.15; font-weight: 680;
  letter-spacing: -0.02em; overflow-wrap: anywhere;
}
h2 { margin: 44px 0 14px; font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; }
h3 { margin: 0; font-size: 15px; line-height: 1.4; }
p { margin: 0 0 10px; }
.kicker { margin: 0; color: var(--accent); font-weight: 650; font-size: 13px; }
.lead { max-width: 70ch; margin: 14px 0 0; font-size: 17px; text-wrap: pretty; }
.uri, .mono {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 0.87em; overflow-wrap: anywhere;
}
.soft { color: var(--soft); }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 16px 0 0; padding: 0; list-style: none; }
.chips li {
  padding: 2px 10px; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  font-size: 13px; overflow-wrap: anywhere;
}
.grid { display: grid; gap: 16px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.cards {
  display: grid; gap: 16px;
  grid-template-columns: repeat(3, minmax(0, 1fr)); margin-top: 28px;
}
.card, figure {
  min-width: 0; margin: 0; padding: 20px; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; box-shadow: var(--shadow);
}
.cards .card { display: flex; flex-direction: column; padding: 18px 20px; }
.cards h3 { color: var(--soft); font-size: 13px; font-weight: 550; }
.now {
  margin: 2px 0 0; font-size: 29px; line-height: 1.25;
  font-weight: 660; letter-spacing: -0.02em;
}
.was { margin: 0 0 10px; color: var(--soft); font-size: 14px; }
.sub { margin: auto 0 0; color: var(--soft); font-size: 13px; line-height: 1.45; }
.pill {
  display: inline-block; margin-left: 6px; padding: 0 8px; border-radius: 99px; font-size: 13px;
  font-weight: 600; background: var(--wash); color: var(--soft); white-space: nowrap;
}
.pill.good { background: var(--good-wash); color: var(--good); }
.pill.bad { background: var(--bad-wash); color: var(--bad); }
.warnings {
  margin-top: 24px; padding: 14px 20px; border: 1px solid var(--note-line); border-radius: 14px;
  background: var(--note-wash);
}
.warnings h2 { margin: 0 0 4px; font-size: 15px; color: var(--note); }
.warnings ul { margin: 0; padding-left: 20px; overflow-wrap: anywhere; }
.stack > * + * { margin-top: 16px; }
figcaption { margin-bottom: 16px; }
figcaption p { margin: 0; color: var(--soft); font-size: 13px; line-height: 1.45; }
svg { display: block; width: 100%; overflow: visible; }
svg:not(.axes) { margin-bottom: 14px; }
svg.axes { width: calc(100% - 52px); margin-left: 50px; }
svg text { fill: var(--soft); font-size: 11px; }
svg .strong { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .name { fill: var(--ink); font-size: 13px; }
svg .grid-line { stroke: var(--grid); stroke-width: 1; }
svg .base { stroke: var(--line); stroke-width: 1; }
svg .mean { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 4; opacity: 0.55; }
svg .track { fill: var(--tint); }
svg .rail { fill: var(--wash); }
svg .hit { fill: transparent; }
svg g:hover > .hit { fill: var(--ink); opacity: 0.06; }
svg .bar { fill: var(--accent); } svg .violet { fill: var(--violet); stroke: var(--violet); }
svg .amber { fill: var(--amber); } svg .rose { fill: var(--rose); stroke: var(--rose); }
svg .blue { fill: var(--blue); } svg .grey { fill: var(--p0); }
svg .planned { fill: var(--planned); }
svg .segment { stroke-width: 1.5; stroke-linecap: round; opacity: 0.55; }
svg .dot { stroke: none; }
.s0 { fill: var(--p0); background: var(--p0); } .s1 { fill: var(--p1); background: var(--p1); }
.s2 { fill: var(--p2); background: var(--p2); } .s3 { fill: var(--p3); background: var(--p3); }
.s4 { fill: var(--p4); background: var(--p4); } .s5 { fill: var(--p5); background: var(--p5); }
.s6 { fill: var(--p6); background: var(--p6); } .s7 { fill: var(--p7); background: var(--p7); }
.legend {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 4px 32px;
  margin: 0; padding: 0; list-style: none; font-size: 14px;
}
.legend li { display: flex; align-items: baseline; gap: 8px; min-width: 0; }
.legend .swatch { flex: none; width: 10px; height: 10px; border-radius: 3px; }
.legend .soft { min-width: 3.4em; text-align: right; }
.legend .what { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.keys {
  display: flex; flex-wrap: wrap; gap: 2px 16px;
  margin-top: 6px; color: var(--soft); font-size: 13px;
}
.keys i {
  display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 3px;
}
.keys .bar { background: var(--accent); } .keys .track { background: var(--tint); }
dl { display: grid; grid-template-columns: minmax(124px, 32%) minmax(0, 1fr); margin: 10px 0 0; }
dt, dd { margin: 0; padding: 6px 0; border-top: 1px solid var(--line); font-size: 14px; }
dl > dt:first-of-type, dl > dt:first-of-type + dd { border-top: 0; }
dt { padding-right: 12px; color: var(--soft); overflow-wrap: anywhere; }
dd { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent);
  outline-offset: 2px;
}
table { width: 100%; border-collapse: collapse; font-size: 14px; }
caption { padding-bottom: 8px; text-align: left; color: var(--soft); font-size: 13px; }
th, td {
  padding: 6px 12px 6px 0; text-align: left;
  vertical-align: top; border-top: 1px solid var(--line);
}
th:last-child, td:last-child { padding-right: 0; }
thead th {
  border-top: 0; color: var(--soft); font-weight: 550;
  font-size: 13px; vertical-align: bottom;
}
tbody th { font-weight: 400; }
.name { overflow-wrap: break-word; }
.num { text-align: right; white-space: nowrap; }
.digest { min-width: 140px; }
details { margin-top: 14px; }
summary {
  width: fit-content; color: var(--accent); font-size: 14px;
  font-weight: 550; cursor: pointer;
}
details > :not(summary) { margin-top: 10px; }
@media (max-width: 720px) {
  main, header, footer { padding-left: 14px; padding-right: 14px; }
  header { padding-top: 28px; }
  .grid { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
  .card, figure { padding: 16px; }
  .cards .card { padding: 14px; }
  .now { font-size: 22px; }
  .was { font-size: 13px; }
  .cards .pill { margin-left: 0; }
  .lead { font-size: 16px; }
  table { font-size: 13px; }
  th, td { padding-right: 9px; }
}
@media print {
  :root { --page: #fff; --shadow: none; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { font-size: 12px; }
  main, header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  header { padding-top: 0; }
  .card, figure, .warnings, tr { break-inside: avoid; }
  h2, h3, figcaption, thead { break-after: avoid; }
  .scroll { overflow: visible; }
  th, td, dt, dd { font-size: 11px; }
}
@media print { details::details-content { content-visibility: visible; display: block; } }
"""
