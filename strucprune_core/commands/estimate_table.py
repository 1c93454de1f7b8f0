"""An estimate for people: sizes, memory, disk, traffic and work. No torch."""

from __future__ import annotations

from typing import Any

from strucprune_core.commands import figures
from strucprune_core.commands.console import print_json, show_warnings
from strucprune_core.commands.tables import print_facts, print_heading, print_table


def show_estimate(estimate: dict[str, Any], as_json: bool) -> None:
    """Print an estimate, and its warnings."""
    if as_json:
        print_json(estimate)
        return
    print_heading("Result")
    print_facts(_results(estimate))
    if estimate.get("predicted_speed") is not None:
        from strucprune_core.commands.report_tables import predicted_line
        from strucprune_core.report.document import PredictedSpeed

        speed = PredictedSpeed.model_validate(estimate["predicted_speed"])
        print_facts({"predicted speed": predicted_line(speed)})
    if estimate["sizes"]:
        _print_sizes(estimate)
    print_heading("\nMemory, at most")
    print_facts(_memory(estimate))
    print_heading("\nDisk and reading")
    print_facts(_traffic(estimate))
    print_heading("\nWork")
    _print_work(estimate["flops"])
    show_warnings(estimate["warnings"])


def _results(estimate: dict[str, Any]) -> dict[str, str]:
    parameters = figures.counts(estimate["parameters_before"], estimate["parameters_after"])
    checkpoint = figures.sizes(estimate["bytes_before"], estimate["bytes_after"])
    reached = figures.percent(estimate["sparsity_reached"])
    asked = figures.percent(estimate["sparsity_requested"])
    return {
        "parameters": parameters,
        "checkpoint": checkpoint,
        **{f"export {name}": figures.size(each) for name, each in estimate["export_bytes"].items()},
        "sparsity": reached if reached == asked else f"{reached}, {asked} asked for",
    }


def _print_sizes(estimate: dict[str, Any]) -> None:
    sizes = estimate["sizes"]
    exports = [*estimate["export_bytes"]]
    headings = ["size", "sparsity", "parameters", "checkpoint", *exports]
    rows = [
        [
            name,
            figures.percent(each["sparsity_reached"]),
            figures.count(each["parameters_after"]),
            figures.size(each["bytes_after"]),
            *(figures.size(each["export_bytes"][export]) for export in exports),
        ]
        for name, each in sizes.items()
    ]
    print_table(headings, rows, right=headings[1:])


def _memory(estimate: dict[str, Any]) -> dict[str, str]:
    facts = {"of the process": figures.size(estimate["host_peak_bytes"])}
    if estimate["device_peak_bytes"]:
        facts["of the accelerator"] = figures.size(estimate["device_peak_bytes"])
    facts["precision"] = " or ".join(
        f"{precision} ({device})" for device, precision in estimate["precision"].items()
    )
    if estimate["speed_bytes"]:
        facts["to measure speed"] = f"{figures.size(estimate['speed_bytes'])} beside it"
    steps = sorted(estimate["step_bytes"].items(), key=lambda step: -step[1])
    facts["tensors by step"] = ", ".join(f"{name} {figures.size(each)}" for name, each in steps)
    return facts


def _traffic(estimate: dict[str, Any]) -> dict[str, str]:
    times = estimate["bytes_read"] / estimate["bytes_before"]
    return {
        "workspace": figures.size(estimate["workspace_bytes"]),
        "reading": f"{figures.size(estimate['bytes_read'])}, the model {times:.1f} times",
        "to and from the device": " and ".join(
            figures.size(sum(phase[way] for phase in estimate["traffic"].values()))
            for way in ("to_device_bytes", "to_host_bytes")
        ),
    }


def _print_work(flops: dict[str, int]) -> None:
    whole = sum(flops.values())
    rows = [
        [name, figures.flops(each), figures.percent(each / whole)]
        for name, each in sorted(flops.items(), key=lambda phase: -phase[1])
    ]
    headings = ["phase", "FLOPs", "share"]
    print_table(headings, [*rows, ["in all", figures.flops(whole), ""]], right=headings[1:])
