"""README.md of the output of a job of several sizes: which folder holds what. No torch."""

from __future__ import annotations

from strucprune_core.report.numbers import count, number, size
from strucprune_core.report.sizes import SizeResult, SizesReport


def sizes_card(report: SizesReport) -> str:
    """A list of the sizes with their main figures; each folder has a model card of its own."""
    lines = [
        "# Pruned models of several sizes",
        "",
        f"Made from one dense model ({count(report.before.parameters)} parameters) by StrucPrune "
        f"{report.environment.strucprune}. Each folder is a complete checkpoint with a card that "
        "says how to load it.",
        "",
        "| folder | parameters | checkpoint | perplexity |",
        "|---|---|---|---|",
        f"| (dense) | {count(report.before.parameters)} | {size(report.before.bytes)} | "
        f"{number(report.perplexity_before)} |",
        *(_line(each) for each in report.sizes if each.folder is not None),
        "",
    ]
    return "\n".join(lines)


def _line(result: SizeResult) -> str:
    figures = f"{count(result.after.parameters)} | {size(result.after.bytes)}"
    return f"| [{result.folder}]({result.folder}/) | {figures} | {number(result.perplexity)} |"
