"""What the page shows beyond the plain fields of a report. No torch.

To show a new figure, add a line to the template of the section whose question it answers. Only
figures that must be computed first belong here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strucprune_core.report.document import Report, layers_with_experts, removes_experts_alone
from strucprune_core.report.html.bars import Bars, memory_bars, perplexity_bars, phase_bars
from strucprune_core.report.html.charts import (
    Chart,
    kept_experts,
    kept_share,
    kept_widths,
    layer_chart,
)
from strucprune_core.report.html.summary import Headline, headlines, lead
from strucprune_core.report.html.tables import (
    Table,
    block_table,
    expert_layer_table,
    expert_table,
    few_tokens_table,
    file_table,
    layer_table,
    memory_table,
    phase_table,
    round_table,
    search_table,
    size_table,
    speed_table,
    task_table,
    traffic_table,
)
from strucprune_core.storage.uri import short_name


@dataclass(frozen=True, slots=True)
class View:
    """What the templates need apart from the report; `perplexity` is None if not evaluated."""

    model: str
    name: str | None
    lead: str
    headlines: Sequence[Headline]
    spec: Mapping[str, str]
    perplexity: Bars | None
    search_table: Table
    size_table: Table
    task_table: Table
    speed_table: Table
    kept_share: str
    kept_widths: Chart
    energy: Chart
    damage: Chart
    error: Chart
    seconds: Chart
    layer_table: Table
    block_table: Table
    removes_experts: bool
    experts_alone: bool
    kept_experts: Chart
    expert_layer_table: Table
    expert_table: Table
    few_tokens: Table
    round_table: Table
    memory: Bars
    memory_table: Table
    traffic_table: Table
    phases: Bars
    phase_table: Table
    file_table: Table


def model_name(uri: str) -> str:
    """A name for the model; of a URI that cannot be parsed, as the report's reader gave it."""
    try:
        return short_name(uri)
    except ValueError:
        return uri


def job_name(spec: Mapping[str, Any]) -> str | None:
    """What people call the job; None also if the report's reader gave something else."""
    name = spec.get("name")
    return name if isinstance(name, str) else None


def view_of(report: Report) -> View:
    """Compute what the templates need."""
    layers, quality = report.layers, report.perplexity
    energies = {layer.index: layer.energy for layer in layers}
    damages = {layer.index: layer.predicted_damage for layer in layers}
    errors = {layer.index: layer.reconstruction_error for layer in layers}
    seconds = {layer.index: layer.seconds for layer in layers}
    return View(
        model=model_name(report.model.uri),
        name=job_name(report.spec),
        lead=lead(report),
        headlines=headlines(report),
        spec=flat(report.spec),
        perplexity=None if quality is None else perplexity_bars(quality),
        search_table=search_table(report),
        size_table=size_table(report),
        task_table=task_table(report.tasks),
        speed_table=speed_table(report.speed),
        kept_share=kept_share(layers),
        kept_widths=kept_widths(layers),
        energy=layer_chart("Energy", energies, "violet", line=True),
        damage=layer_chart("Predicted damage", damages, "amber"),
        error=layer_chart("Reconstruction error", errors, "rose", line=True),
        seconds=layer_chart("Time in seconds", seconds, "blue"),
        layer_table=layer_table(layers),
        block_table=block_table(report.blocks),
        removes_experts=bool(layers_with_experts(layers)),
        experts_alone=removes_experts_alone(report),
        kept_experts=kept_experts(layers),
        expert_layer_table=expert_layer_table(layers),
        expert_table=expert_table(layers),
        few_tokens=few_tokens_table(layers),
        round_table=round_table(report.rounds),
        memory=memory_bars(report.memory),
        memory_table=memory_table(report.memory),
        traffic_table=traffic_table(report.traffic),
        phases=phase_bars(report.phases),
        phase_table=phase_table(report.phases),
        file_table=file_table(report.files),
    )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The leaves of nested mappings by dotted path, as text."""
    leaves: dict[str, str] = {}
    for key, item in value.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            leaves |= flat(item, f"{path}.")
        elif isinstance(item, str):
            leaves[path] = item
        else:
            leaves[path] = json.dumps(item, ensure_ascii=False, default=str)
    return leaves
