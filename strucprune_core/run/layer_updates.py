"""What becomes known of layers while a job runs, sent to its caller. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace

# Digits of a number on its way to a screen.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class LayerUpdate:
    """What has become known of a layer, in the terms of `report.LayerReport`.

    A later update replaces what an earlier one said. None says nothing.

    Attributes:
        index: The layer.
        width_before: FFN channels, all experts together.
        width_after: Those that stay.
        query_heads_before: Query heads.
        query_heads_after: Those that stay.
        energy: Loss per unit of damage, the largest of its sites; 1 where it is not measured.
        predicted_damage: Energy-scaled damage of what goes.
        reconstruction_error: Squared error of its output relative to its energy, held-out tokens,
            the largest of its sites. Known once the layer is solved.
        solved: Of a layer that is solved and whose error is unknown.
        experts_before: Routed experts, of a job that removes some.
        experts_after: Those that stay.
        kl: Of the last layer: KL divergence per token of the model without these experts from the
            dense one, on held-out calibration text.
    """

    index: int
    width_before: int | None = None
    width_after: int | None = None
    query_heads_before: int | None = None
    query_heads_after: int | None = None
    energy: float | None = None
    predicted_damage: float | None = None
    reconstruction_error: float | None = None
    solved: bool | None = None
    experts_before: int | None = None
    experts_after: int | None = None
    kl: float | None = None


LayerSink = Callable[[Sequence[LayerUpdate]], None]


def ignore_layers(updates: Sequence[LayerUpdate]) -> None:
    """A sink for callers that do not watch layers."""


def merged(updates: Iterable[LayerUpdate]) -> list[LayerUpdate]:
    """One update for each layer, by layer; what comes later counts."""
    latest: dict[int, LayerUpdate] = {}
    for update in updates:
        known = {name: value for name, value in asdict(update).items() if value is not None}
        latest[update.index] = replace(latest.get(update.index, update), **known)
    return [latest[index] for index in sorted(latest)]


def as_columns(updates: Sequence[LayerUpdate]) -> dict[str, list[int | float | None]]:
    """The wire form: a list for each attribute of which something is known, all equally long.

    A number that is not finite has no place in JSON, and says nothing.
    """
    columns = {
        field.name: [_number(getattr(update, field.name)) for update in updates]
        for field in fields(LayerUpdate)
    }
    return {
        name: values
        for name, values in columns.items()
        if any(value is not None for value in values)
    }


def _number(value: float | None) -> int | float | None:
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
