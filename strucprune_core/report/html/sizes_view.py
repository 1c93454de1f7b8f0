"""What the page of a job of several sizes shows beyond the plain fields of its report. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strucprune_core.report.html.axes import Axis, linear_axis
from strucprune_core.report.html.bars import Bars, phase_bars
from strucprune_core.report.html.tables import Table, file_table, phase_table
from strucprune_core.report.html.view import flat, model_name
from strucprune_core.report.numbers import ABSENT, change, count, number, percent, size
from strucprune_core.report.sizes import SizeResult, SizesReport

_HEIGHT = 180


@dataclass(frozen=True, slots=True)
class Point:
    """A model in the plot of perplexity over size; `x` is a share of the width."""

    name: str
    text: str
    x: float
    perplexity: float
    style: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Perplexity over the bytes of the checkpoint, from small to large."""

    axis: Axis
    points: Sequence[Point]
    front: Sequence[Point]
    label: str
    most_bytes: int


@dataclass(frozen=True, slots=True)
class SizesView:
    """What the template needs apart from the report; `curve` is None if nothing was evaluated."""

    model: str
    lead: str
    curve: Curve | None
    table: Table
    spec: Mapping[str, str]
    phases: Bars
    phase_table: Table
    file_table: Table


def sizes_view_of(report: SizesReport) -> SizesView:
    """Compute what the template needs."""
    return SizesView(
        model=model_name(report.model.uri),
        lead=_lead(report),
        curve=_curve(report),
        table=_table(report),
        spec=flat(report.spec),
        phases=phase_bars(report.phases),
        phase_table=phase_table(report.phases),
        file_table=file_table(report.files),
    )


def _lead(report: SizesReport) -> str:
    good = [each for each in report.sizes if each.folder is not None]
    sizes = ", ".join(size(each.after.bytes) for each in good)
    rejected = len(report.sizes) - len(good)
    text = f"One dense model of {size(report.before.bytes)}, measured once, became {sizes}."
    return f"{text} {rejected} of the sizes asked for were not published." if rejected else text


def _curve(report: SizesReport) -> Curve | None:
    dense = report.perplexity_before
    drawn = [each for each in report.sizes if each.perplexity is not None]
    if dense is None or not drawn:
        return None
    most = report.before.bytes

    def point(each: SizeResult) -> Point:
        perplexity = each.perplexity or 0.0
        text = f"{size(each.after.bytes)}, perplexity {number(perplexity)}"
        style = "violet" if each.best_of_its_size else "rose" if each.rejected else "grey"
        return Point(each.name, text, each.after.bytes / most, perplexity, style)

    whole = Point("dense", f"{size(most)}, perplexity {number(dense)}", 1.0, dense, "blue")
    points = sorted((*map(point, drawn), whole), key=lambda each: each.x)
    return Curve(
        axis=linear_axis([each.perplexity for each in points], _HEIGHT),
        points=points,
        front=[each for each in points if each.style in ("violet", "blue")],
        label="; ".join(f"{each.name}: {each.text}" for each in points),
        most_bytes=most,
    )


def _table(report: SizesReport) -> Table:
    before = report.before
    dense = ["dense", count(before.parameters), ABSENT, size(before.bytes), ABSENT]
    rows = [[*dense, number(report.perplexity_before, none=ABSENT), ABSENT, ABSENT]]
    for each in report.sizes:
        verdict = "best of its size" if each.best_of_its_size else ABSENT
        rows.append(
            [
                each.name,
                count(each.after.parameters),
                change(before.parameters, each.after.parameters),
                size(each.after.bytes),
                percent(each.sparsity.reached),
                number(each.perplexity, none=ABSENT),
                number(each.perplexity_ratio, none=ABSENT),
                "not published" if each.rejected else verdict,
            ]
        )
    head = ["Size", "Parameters", "Change", "Checkpoint", "Removed", "Perplexity", "Ratio", ""]
    return Table("All sizes", head, rows)
