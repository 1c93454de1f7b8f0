"""Some layers of a LLaMA-7B shape, pruned: phases, their rates and the peak.

The whole model is not run. Its time is extrapolated phase by phase, in proportion to the planned
operations, or to the layers where none are planned; the result says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Text, Units, job, make_model, phase_of, planned_flops, run
from benchmarks.gpu.rates import SIZE, product_rates
from benchmarks.gpu.record import Keep
from benchmarks.gpu.shapes import raw_of
from benchmarks.speed import IN_FLOAT64
from strucprune_core.models.families import parse_config
from strucprune_core.plan.pieces import plan_job
from strucprune_core.report.document import Report

GOAL_SECONDS = 60.0
"""Of the whole model on a GPU of the H200's class."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured."""

    name: str = "llama-7b"
    raw: dict[str, Any] = field(default_factory=lambda: raw_of("llama-7b"))
    layers: int = 1
    text: Text = field(default_factory=lambda: Text(128, 2048))
    phase_limit_seconds: float = 60.0
    product_size: int = SIZE


def measure(device: str, folder: Path, keep: Keep, settings: Settings = Settings()) -> None:
    """Rates of the device, then the job."""
    rates = product_rates(device, settings.product_size)
    whole = parse_config(settings.raw)
    raw = {**settings.raw, "num_hidden_layers": settings.layers}
    config = parse_config(raw)
    about: dict[str, Any] = {
        "shape": settings.name,
        "layers": settings.layers,
        "layers_of_whole_model": whole.layers,
        "tokens": settings.text.samples * settings.text.sequence_length,
        "product_flops_per_second": rates,
    }
    keep(about)
    model = make_model(folder, raw, settings.text, device)
    spec = job(model, folder / "job", settings.text, device)
    plan = plan_job(spec, config)
    planned = planned_flops(spec, config, plan.panels)
    about["device_peak_bytes_planned"] = plan.device_peak_bytes

    def found() -> dict[str, Any]:
        computed = phases(units, planned, rates, spec.runtime.precision)
        return {**about, **units.found, "phases": computed}

    units = Units(lambda _: keep(found()))
    report = run(spec, folder / "job", units, settings.phase_limit_seconds)
    if not isinstance(report, Report):
        keep({**found(), "stopped": report})
        return
    measured = report.memory.device_peak_bytes.measured
    of_whole = planned_flops(spec, whole, plan.panels)
    more = whole.layers / config.layers
    seconds = extrapolated(units.seconds, planned, of_whole, more)
    keep(
        {
            **found(),
            "device_peak_bytes_measured": measured,
            "peak_within_plan": None if measured is None else measured <= plan.device_peak_bytes,
            "precision": report.environment.precision,
            "solves": None if report.solves is None else report.solves.model_dump(),
            "traffic": [phase.model_dump() for phase in report.traffic],
            "seconds": sum(units.seconds.values()),
            "whole_model": {
                "how": f"extrapolated from {config.layers} of {whole.layers} layers, not measured: "
                "each phase by its planned operations, or by layers where none are planned; what a "
                "phase takes once, whatever the layers, grows with it here",
                "seconds_by_phase": seconds,
                "seconds": sum(seconds.values()),
                "goal_seconds": GOAL_SECONDS,
            },
        }
    )


def phases(
    units: Units, planned: Mapping[str, int], rates: Mapping[str, float], precision: str
) -> dict[str, dict[str, float | str]]:
    """Of phases with planned operations: those of finished units, per second, beside the rate.

    That is the rate of what most products of the phase are computed in.
    """
    layers = precision if precision in rates else "float32"
    found: dict[str, dict[str, float | str]] = {}
    for phase, count in _by_phase(planned, units.names).items():
        seconds = units.seconds[phase]
        if not count or not seconds:
            continue
        dtype = "float64" if phase in IN_FLOAT64 else layers
        found[phase] = {
            "planned_flops": count,
            "tflops_per_second": count / seconds / 1e12,
            "precision": dtype,
            "share_of_product_rate": count / seconds / rates[dtype],
        }
    return found


def extrapolated(
    seconds: Mapping[str, float],
    planned: Mapping[str, int],
    planned_of_whole: Mapping[str, int],
    layers_ratio: float,
) -> dict[str, float]:
    """Seconds of a model with more layers, by phase."""
    few, many = _by_phase(planned, planned), _by_phase(planned_of_whole, planned_of_whole)
    return {
        phase: spent * (many[phase] / few[phase] if few.get(phase) else layers_ratio)
        for phase, spent in seconds.items()
    }


def _by_phase(planned: Mapping[str, int], units: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for unit in units:
        phase = phase_of(unit)
        found[phase] = found.get(phase, 0) + planned.get(unit, 0)
    return found
