"""Draws a report as one HTML page: no script, nothing loaded, plots as inline SVG. No torch.

Jinja escapes every value that it puts into the page. If one ever slipped through, the page's
content security policy would still forbid scripts and loads.
"""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from strucprune_core.report import numbers
from strucprune_core.report.html.axes import drawable
from strucprune_core.report.html.sizes_view import sizes_view_of
from strucprune_core.report.html.view import view_of
from strucprune_core.report.sizes import AnyReport, SizesReport
from strucprune_core.report.visible_text import visible

# Control characters are not XML, lone surrogates are not UTF-8, and direction overrides let one
# string disguise its neighbours: all are shown as U+FFFD.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_NUMBERS = ("change", "duration", "exact", "number", "percent", "share", "size", "tick")


def render_html(report: AnyReport) -> str:
    """The report as a self-contained page.

    Args:
        report: The report of a finished job, of one size or of several.

    Returns:
        A whole HTML document, to be written as UTF-8.
    """
    if isinstance(report, SizesReport):
        template = environment().get_template("sizes.html")
        page = template.render(report=report, view=sizes_view_of(report))
    else:
        template = environment().get_template("page.html")
        page = template.render(report=report, view=view_of(report))
    return _UNSAFE.sub("\ufffd", page)


@cache
def environment() -> Environment:
    """The templates, and the filters that they use."""
    made = Environment(
        loader=PackageLoader("strucprune_core.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(numbers, name) for name in _NUMBERS}
    made.filters |= {"pct": _pct, "px": _px, "visible": visible}
    made.tests["drawable"] = drawable
    made.globals["ABSENT"] = numbers.ABSENT
    return made


def _pct(share: float) -> str:
    return f"{100 * share:.4g}%"


def _px(pixels: float) -> str:
    return f"{pixels:.4g}"
