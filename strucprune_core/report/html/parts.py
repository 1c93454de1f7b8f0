"""The pieces that sections of the page are put together from. No torch.

Arguments are text and are escaped here, but for those that are said to be HTML.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from strucprune_core.report.html.style import ABSENT, esc

_MONO = ' class="mono"'


def card(title: str, now: str, was: str, pill: str, sub: str) -> str:
    """One headline card; `pill` is HTML, everything else is text."""
    return (
        f'<article class="card"><h3>{esc(title)}</h3><p class="now">{esc(now)}</p>'
        f'<p class="was">{esc(was)} {pill}</p><p class="sub">{esc(sub)}</p></article>'
    )


def figure(title: str, note: str, plot: str, *, extra: str = "", keys: str = "") -> str:
    """A captioned plot; `plot`, `extra` and `keys` are HTML."""
    return (
        f"<figure><figcaption><h3>{esc(title)}</h3><p>{esc(note)}</p>{keys}</figcaption>"
        f"{plot}{extra}</figure>"
    )


def details(summary: str, body: str) -> str:
    """What is folded away under a summary; `body` is HTML."""
    return f"<details><summary>{esc(summary)}</summary>{body}</details>"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numeric_from: int
) -> str:
    """A table of text cells that scrolls inside itself on narrow screens."""
    columns = "".join(
        f'<th scope="col"{_numeric(place, numeric_from)}>{esc(name)}</th>'
        for place, name in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row">{esc(row[0])}</th>'
        + "".join(
            f"<td{_numeric(place, numeric_from)}>{esc(cell)}</td>"
            for place, cell in enumerate(row[1:], start=1)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table>'
        f"<caption>{esc(caption)}</caption><thead><tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, object]], mono: Collection[str] = ()) -> str:
    """Names and values, all text; the values named in `mono` are set in a fixed pitch."""
    rows = "".join(
        f"<dt>{name_html(name)}</dt><dd{_MONO if name in mono else ''}>{esc(value)}</dd>"
        for name, value in pairs
    )
    return f"<dl>{rows}</dl>"


def name_html(name: str) -> str:
    """A name as HTML that may break after its dots and underscores rather than anywhere."""
    return esc(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def pill(text: str, tone: str) -> str:
    """A coloured word or two; nothing for a figure that is absent."""
    return f'<span class="pill {tone}">{esc(text)}</span>' if text != ABSENT else ""


def _numeric(place: int, numeric_from: int) -> str:
    return ' class="num"' if place >= numeric_from else ""
