"""Whether a class of transformers has the heads that a job in layout `uniform` leaves. No torch.

`export.uniform_config` says which class has which. A job whose heads none has is refused with the
sparsities that would do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.export.uniform_config import loading_family, why_not
from strucprune_core.method.allocation.uniform import allocate_uniformly
from strucprune_core.models.config import ModelConfig
from strucprune_core.plan.sites import PlannedSite, plan_sites, pruned_config
from strucprune_core.spec import PruningSpec

_HEADS = ("kv_groups", "query_heads")
_OFFERED = 4
_DIGITS = 4


def uniform_shape(pruning: PruningSpec, config: ModelConfig) -> ModelConfig | None:
    """The pruned model's shape, of a job in layout `uniform` that shrinks layers of a family.

    Args:
        pruning: What is asked for, and possible.
        config: The dense model.

    Returns:
        None for any other job: its shape is not known yet, or transformers' class has no say in it.
    """
    others = config.generic is not None or pruning.removes_blocks or pruning.removes_experts
    if pruning.layout != "uniform" or others:
        return None
    return _shape(pruning, config, plan_sites(config, pruning), pruning.asked_sparsity)


def check_heads_load(pruning: PruningSpec, config: ModelConfig) -> None:
    """Check that a class of transformers has the heads that are left.

    Raises:
        InvalidSpec: none has. Names the field `pruning.layout`, and sparsities that would do.
    """
    shape = uniform_shape(pruning, config)
    if shape is None or loading_family(shape) is not None:
        return
    raise InvalidSpec(
        f"{why_not(shape)}, so no uniform layout can hold the result",
        field="pruning.layout",
        remedy=_remedy(pruning, config),
        mends=_mends(pruning, config),
    )


def _shape(
    pruning: PruningSpec, config: ModelConfig, planned: list[PlannedSite], sparsity: float
) -> ModelConfig:
    widths = [place.site.structures for place in planned]
    kept = allocate_uniformly(widths, sparsity, [place.rule for place in planned]).widths
    return pruned_config(config, pruning, planned, list(kept))


def _remedy(pruning: PruningSpec, config: ModelConfig) -> str:
    if not set(_HEADS).intersection(pruning.structures):  # Heads are gone already.
        return "Use layout 'per_layer'."
    usual = "Use layout 'per_layer', or structures ['ffn_channels']"
    offers = [f"{sparsity:g} ({heads} query heads)" for sparsity, heads in _offers(pruning, config)]
    if not offers:
        return f"{usual}; no smaller number of heads would do."
    return f"{usual}, or a pruning.sparsity of {_listed(offers)}."


def _mends(pruning: PruningSpec, config: ModelConfig) -> list[Mend]:
    mends = [Mend("pruning.layout", "per_layer")]
    if set(_HEADS).intersection(pruning.structures):
        mends.append(Mend("pruning.structures", ["ffn_channels"]))
        mends += [Mend("pruning.sparsity", each) for each, _ in _offers(pruning, config)]
    return mends


def _offers(pruning: PruningSpec, config: ModelConfig) -> list[tuple[float, int]]:
    """(sparsity, query heads left) of jobs that would do, those nearest to what is asked for."""
    planned = plan_sites(config, pruning)
    place = next(each for each in planned if each.site.kind == "attention")
    count, found = place.site.structures, []
    for kept in place.rule.widths(count)[1:]:
        # Rounded down, so that rounding leaves no head less.
        sparsity = math.floor((1.0 - kept / count) * 10**_DIGITS) / 10**_DIGITS
        try:
            shape = _shape(pruning, config, planned, sparsity)
        except InvalidSpec:  # Another structure's floor.
            continue
        if loading_family(shape) is not None:
            found.append((sparsity, shape.blocks[0].query_heads))
    found.sort(key=lambda each: abs(each[0] - pruning.asked_sparsity))
    return sorted(found[:_OFFERED])


def _listed(items: Sequence[str]) -> str:
    return " or ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
