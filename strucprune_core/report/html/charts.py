"""Charts with a mark for each layer. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from strucprune_core.report.document import LayerReport, layers_with_experts
from strucprune_core.report.html.axes import (
    Axis,
    drawable,
    fitting_axis,
    linear_axis,
    width_axis,
)
from strucprune_core.report.numbers import number, share

_MAX_LAYER_NUMBERS = 9


@dataclass(frozen=True, slots=True)
class Mark:
    """One layer of a chart: its number, its value in words, and heights by colour class."""

    index: int
    text: str
    heights: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns over the layers, or dots joined by lines.

    Attributes:
        title: What is shown, in a few words.
        extent: The range of the values, for screen readers.
        axis: Of the heights.
        marks: One per layer; heights that cannot be drawn are left out.
        line: Whether to draw dots and lines.
        mean: Height of a dashed line, if any.
    """

    title: str
    extent: str
    axis: Axis
    marks: Sequence[Mark]
    line: bool = False
    mean: float | None = None

    @property
    def unknown(self) -> int:
        """How many layers have a height that is not known."""
        return sum(None in mark.heights.values() for mark in self.marks)

    def numbers(self, index: int) -> bool:
        """Whether the number of this layer is written: multiples of 1, 2, 5, 10, 20 or so."""
        layers, step, leads = len(self.marks), 1, cycle((2.0, 2.5, 2.0))
        while layers > step * _MAX_LAYER_NUMBERS:
            step = int(step * next(leads))
        return index % step == 0


def kept_widths(layers: Sequence[LayerReport]) -> Chart:
    """The width of each layer in front of its dense width."""
    widths = [layer.width_after for layer in layers]
    marks = [
        Mark(
            layer.index,
            f"{layer.width_after:,} of {layer.width_before:,} channels kept"
            f" ({share(layer.width_after, layer.width_before)})",
            {"track": layer.width_before, "bar": layer.width_after},
        )
        for layer in layers
    ]
    axis = width_axis([layer.width_before for layer in layers], height=210)
    mean = sum(widths) / max(1, len(widths))
    return Chart("Kept FFN channels", _extent(widths), axis, marks, mean=mean)


def kept_experts(layers: Sequence[LayerReport]) -> Chart:
    """The experts that each layer keeps in front of those that it had; without experts none."""
    held = layers_with_experts(layers)
    counts = [experts.after for _, experts in held]
    marks = [
        Mark(
            layer.index,
            f"{experts.after:,} of {experts.before:,} experts kept",
            {"track": experts.before, "bar": experts.after},
        )
        for layer, experts in held
    ]
    axis = width_axis([experts.before for _, experts in held], height=210)
    return Chart("Kept experts", _extent(counts), axis, marks)


def kept_share(layers: Sequence[LayerReport]) -> str:
    """Share of all FFN channels that stayed."""
    dense = sum(layer.width_before for layer in layers)
    return share(sum(layer.width_after for layer in layers), dense)


def layer_chart(
    title: str, values: Mapping[int, float | None], colour: str, *, line: bool = False
) -> Chart:
    """Columns from zero, or dots joined by a line, on a logarithmic axis if the values need one.

    Args:
        title: What is shown.
        values: By layer; None: unknown.
        colour: Colour class of the marks.
        line: Whether to draw dots and lines.
    """
    axis = (fitting_axis if line else linear_axis)(values.values(), height=150)
    marks = [
        Mark(layer, f"{title.lower()} {number(value)}", {colour: value})
        for layer, value in values.items()
    ]
    return Chart(title, _extent(values.values()), axis, marks, line=line)


def _extent(values: Iterable[float | None]) -> str:
    """Range of the values, for screen readers."""
    finite = [value for value in values if drawable(value)]
    if not finite:
        return "no values"
    return f"from {number(min(finite))} to {number(max(finite))}"
