"""A job that looks for the most sparsity that keeps perplexity, as one graph. No torch.

    … curve.l, probe.g ─ search.1 ─ price.1@try1 ─ … ─ solve.l@try1 ─ … ─ evaluate.pruned@try1 ─┐
    ┌───────────────────────────────────────────────────────────────────────────────────────────┘
    └─ search.2 ─ price.1@try2 ─ … ─ evaluate.pruned@try2 ─ … ─ search.n+1 ─ price.1 ─ … ─ report

Every try is a job of one size up to its perplexity, at the sparsity that `search.k` chooses by the
tries before it. The last search takes the best of them, and the units without a mark are the job of
this sparsity, whose result is published: to the byte what a job that asks for it publishes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from strucprune_core.plan.graph import Unit, ancestors
from strucprune_core.plan.sizes import named, of_size, own_units
from strucprune_core.run.artifacts import Evaluate, File, Price, Search
from strucprune_core.run.progress import Phase

TRY = "try"


def label_of_try(number: int) -> str:
    """Marks the units of a try, from 1."""
    return f"{TRY}{number}"


def labels(tries: int) -> list[str]:
    """Of all tries and of the result, which is the first."""
    return ["", *(label_of_try(number) for number in range(1, tries + 1))]


def number_of_search(label: str, tries: int) -> int:
    """Which search chooses the sparsity of a try or the result."""
    return tries + 1 if label == "" else labels(tries).index(label)


def try_units(graph: list[Unit]) -> list[Unit]:
    """What is done in every try: the units between the sparsity and the perplexity of the result.

    Args:
        graph: The units of a job of one size, in topological order.
    """
    own, measured = own_units(graph), Evaluate("pruned").unit
    needed = ancestors(graph)[measured] | {measured}
    return [unit for unit in graph if unit.name in own & needed]


def searched(graph: list[Unit], tries: int) -> list[Unit]:
    """One graph of all tries and of the result, in topological order.

    Args:
        graph: The units of a job of one size, in topological order.
        tries: How often a sparsity is tried.
    """
    own = own_units(graph)
    tried = try_units(graph)
    shared = [unit for unit in graph if unit.name not in own]
    before, reads = _known(graph)
    units = [*shared, _search(1, before, reads)]
    for number in range(1, tries + 1):
        label = label_of_try(number)
        units += [_after_search(of_size(unit, label, own), number) for unit in _dropped(tried)]
        before = [named(Evaluate("pruned").unit, label), Evaluate("dense").unit]
        units.append(_search(number + 1, before, reads))
    final = [unit for unit in graph if unit.name in own]
    return units + [_after_search(unit, tries + 1) for unit in final]


def _known(graph: list[Unit]) -> tuple[Iterable[str], tuple[File, ...]]:
    """Units and files from which widths follow, given a sparsity."""
    first = next(unit for unit in graph if unit.name == Price(1).unit)
    return first.after, first.reads


def _search(number: int, after: Iterable[str], reads: tuple[File, ...]) -> Unit:
    before = dict.fromkeys((*after, *(file.unit for file in reads)))
    return Unit(Search(number).unit, Phase.ALLOCATING, tuple(before), reads)


def _after_search(unit: Unit, number: int) -> Unit:
    """The unit; if it is the first that needs the sparsity, once that is chosen."""
    if unit.kind != Price.kind or unit.index != 1:
        return unit
    return replace(unit, after=(*unit.after, Search(number).unit))


def _dropped(tried: list[Unit]) -> list[Unit]:
    """The same, whose last unit drops what they have written: nothing more is done with it."""
    *others, last = tried
    written = {file for unit in tried for file in unit.reads}
    return [*others, replace(last, releases=(*last.releases, *sorted(written)))]
