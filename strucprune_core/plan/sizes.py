"""A job of several sizes as one graph: what they share is done once. No torch.

    model_check … capture.l, curve.l, probe.g ─┬─ price.1@0.2 ─ … ─ solve.l@0.2 ─ … ─ report@0.2 ─┐
    evaluate.dense ────────────────────────────┼─ price.1@0.3 ─ … ─ solve.l@0.3 ─ … ─ report@0.3 ─┤
                                               └─ …                       sizes@0.2+0.3 ── (publish)

A size's own units do what a job of this size alone does, so its result is the same, to the byte.
All that depends on the sparsity is a size's own; so is what comes after it. Files that sizes share
are kept until the end, and longer: a further size may be asked for in the same workspace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from strucprune_core.plan.graph import SIZE_MARK, Unit
from strucprune_core.run.artifacts import File, Report, Sizes
from strucprune_core.run.progress import Phase

# Kinds of units that depend on the sparsity. A probe of experts removes as many as the job is to.
_BY_SPARSITY = frozenset({"price", "drop", "allocate", "select"})
_BY_SPARSITY_OF_EXPERTS = _BY_SPARSITY | {"probe"}


def named(unit: str, size: str) -> str:
    """A unit's name among those of several sizes."""
    return f"{unit}{SIZE_MARK}{size}" if size else unit


def own_units(graph: Iterable[Unit]) -> frozenset[str]:
    """Names of the units that a size does for itself.

    Args:
        graph: The units of a job of one size, in topological order.
    """
    graph = list(graph)
    of_experts = any(unit.kind == "route" for unit in graph)
    kinds = _BY_SPARSITY_OF_EXPERTS if of_experts else _BY_SPARSITY
    own: set[str] = set()
    for unit in graph:
        before = {*unit.after, *(file.unit for file in unit.reads)}
        if unit.kind in kinds or not own.isdisjoint(before):
            own.add(unit.name)
    return frozenset(own)


def joined(graphs: Mapping[str, list[Unit]]) -> list[Unit]:
    """One graph of all sizes, in topological order.

    Args:
        graphs: Each size's own graph by its label; one alone, labelled "", stays as it is.
    """
    if [*graphs] == [""]:
        return graphs[""]
    shared: dict[str, Unit] = {}
    units: list[Unit] = []
    for size, graph in graphs.items():
        own = own_units(graph)
        shared |= {unit.name: unit for unit in graph if unit.name not in own}
        units += [of_size(unit, size, own) for unit in graph if unit.name in own]
    reports = [unit for unit in units if unit.kind == Report.kind]
    reads = [*dict.fromkeys(file for unit in reports for file in unit.reads)]
    reads += [
        File(unit.name, name)
        for unit in reports
        for name in (Report.json, Report.html, Report.card)
    ]
    every = named(Sizes().unit, "+".join(graphs))
    after = tuple(unit.name for unit in reports)
    return [*shared.values(), *units, Unit(every, Phase.COMMITTING, after, tuple(reads))]


def of_size(unit: Unit, size: str, own: frozenset[str]) -> Unit:
    """The unit under its name among all; it keeps what other sizes need too.

    Args:
        unit: A unit of a job of this size alone.
        size: The size's label.
        own: Names of the units that a size does for itself.
    """

    def own_name(name: str) -> str:
        return named(name, size) if name in own else name

    def own_files(files: Iterable[File]) -> tuple[File, ...]:
        return tuple(File(own_name(file.unit), file.name) for file in files)

    return replace(
        unit,
        name=named(unit.name, size),
        after=tuple(own_name(name) for name in unit.after),
        reads=own_files(unit.reads),
        releases=own_files(file for file in unit.releases if file.unit in own),
        follows=tuple(own_name(name) for name in unit.follows),
    )
