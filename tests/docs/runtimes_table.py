"""The table of docs/loading.md that says what loads where, made of the library's one table.

python -m tests.docs.runtimes_table
"""

from __future__ import annotations

import re

from embedded.stack import ROOT
from strucprune_core.export.layouts import CLASS_STEMS
from strucprune_core.export.runtimes import RUNTIMES, LoadableForm
from strucprune_core.models.generic.architectures import generic_model_types

PAGE = ROOT / "docs/loading.md"
_TABLE = re.compile(
    r"(?<=<!-- made by python -m tests.docs.runtimes_table -->\n)(?:\|.*\n)*", re.MULTILINE
)


def table() -> str:
    """A row for each family, a column for each runtime and form."""
    columns = [
        (runtime.name, form)
        for runtime in RUNTIMES
        for form in dict.fromkeys(each.form for each in runtime.loads)
    ]
    names = " | ".join(f"{runtime} `{form}`" for runtime, form in columns)
    lines = [f"| family | {names} |", "|" + "---|" * (len(columns) + 1)]
    others = generic_model_types()[0]
    for family in (*CLASS_STEMS, others):
        cells = []
        for name, form in columns:
            (runtime,) = (each for each in RUNTIMES if each.name == name)
            cells.append(_cell([each for each in runtime.loads if each.form == form], family))
        shown = "any other" if family == others else family
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(forms: list[LoadableForm], family: str) -> str:
    known = [each for each in forms if family in each.families]
    if not known:
        return "no"
    form = known[0]
    if family in form.not_tried:
        only = f" ({', '.join(form.not_without)} may not go)" if form.not_without else ""
        return f"not tried{only}"
    text = "yes" if form.since is None else f"from {form.since}"
    if family in form.without_blocks and form.blocks_since not in (None, form.since):
        text += f", without blocks from {form.blocks_since}"
    if form.full_heads and not any(not each.full_heads for each in known):
        text += ", with all heads"
    may_lack_blocks = form.form != "uniform" and family in CLASS_STEMS
    if may_lack_blocks and family not in form.without_blocks:
        text += ", without blocks not tried"
    return text


def main() -> None:
    """Write the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    if _TABLE.search(page) is None:
        raise SystemExit(f"{PAGE} has no place for the table")
    PAGE.write_text(_TABLE.sub(lambda _: table(), page), encoding="utf-8")


if __name__ == "__main__":
    main()
