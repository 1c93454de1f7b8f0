"""Which experts of a mixture-of-experts model can be removed, and the model without them. No torch.

Every layer keeps equally many, so that config.json says how many there are and transformers' own
class loads the result. Experts that stay keep their order and get new numbers. Where they form
groups, every group keeps equally many: a router that finds a group's experts by dividing would
otherwise choose wrong ones, without an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.models.config import Experts, GenericLayer, ModelConfig, Routing
from strucprune_core.models.tensors import tensor_name

Kept = Sequence[Sequence[int]]
"""Of each layer the experts that stay, ascending; empty for a layer without experts."""

# A router that scores a group by its two best experts needs two in each.
_LEAST_OF_GROUP = 2
_MATRIX = 2  # Dimensions.


def routing_of(config: ModelConfig) -> Routing:
    """How tokens choose among the experts of a model in which it is known what they are."""
    if config.generic is None or config.generic.routing is None:
        raise TypeError("not a model whose experts are known")
    return config.generic.routing


def experts_of(config: ModelConfig, layer: int) -> Experts | None:
    """The experts of a layer; None if it has none."""
    generic = config.blocks[layer].generic
    return None if generic is None else generic.experts


def expert_matrices(config: ModelConfig, layer: int) -> Experts | None:
    """Of a layer's experts the matrices alone: what need not be in memory for all of them at once.

    Returns:
        `own` and `sliced` name matrices; None if the layer has none that are known.
    """
    block, experts = config.blocks[layer].generic, experts_of(config, layer)
    if block is None or experts is None:
        return None
    shapes = dict(block.tensors)
    own = tuple(name for name in experts.own if len(shapes[name.format(0)]) == _MATRIX)
    sliced = tuple(
        (name, axis)
        for name, axis in experts.sliced
        if axis == 0 and len(shapes[name]) == _MATRIX + 1
    )
    return replace(experts, own=own, sliced=sliced) if own or sliced else None


def matrices_bytes(config: ModelConfig, layer: int, number: int = 4) -> int:
    """Bytes of the matrices of one expert, `number` for each; 0 if it has none that are known."""
    block, experts = config.blocks[layer].generic, expert_matrices(config, layer)
    if block is None or experts is None:
        return 0
    shapes = dict(block.tensors)
    sizes = [math.prod(shapes[name.format(0)]) for name in experts.own]
    sizes += [math.prod(shapes[name][1:]) for name, _ in experts.sliced]
    return number * sum(sizes)


def least_kept(routing: Routing) -> int:
    """The fewest experts with which every token still finds as many as it has now."""
    of_group = math.ceil(routing.chosen / min(routing.groups, routing.chosen_groups))
    if routing.groups > 1:
        of_group = max(of_group, _LEAST_OF_GROUP)
    return of_group * routing.groups


def _needed(routing: Routing) -> str:
    """Why so many experts must stay."""
    chosen = f"a token chooses {routing.chosen} ({routing.chosen_from})"
    if routing.groups == 1:
        return chosen
    return (
        f"{chosen} from {routing.chosen_groups} of {routing.groups} groups, and a group is judged "
        f"by its {_LEAST_OF_GROUP} best"
    )


def expert_parameters(config: ModelConfig, layer: int) -> int:
    """Parameters that one expert of a layer has, those of its router's rows included."""
    block, experts = config.blocks[layer].generic, experts_of(config, layer)
    if block is None or experts is None:
        return 0
    shapes = dict(block.tensors)
    own = sum(math.prod(shapes[name.format(0)]) for name in experts.own)
    return own + sum(math.prod(shapes[name]) // shapes[name][axis] for name, axis in experts.sliced)


def kept_count(
    routing: Routing,
    sparsity: float,
    *,
    multiple_of: int,
    min_keep_fraction: float,
    max_layer_sparsity: float,
) -> int:
    """Experts that every layer keeps: the number nearest to what is asked for.

    Raises:
        InvalidSpec: that is less than one expert, or more than may go.
    """
    possible, step = _possible_counts(routing, multiple_of, min_keep_fraction, max_layer_sparsity)
    total = routing.experts
    wanted = (1.0 - sparsity) * total
    if wanted > (possible[-1] + total) / 2:
        least = (1.0 - possible[-1] / total) / 2
        raise InvalidSpec(
            f"{sparsity:.4g} of {total} experts rounds to none",
            field="pruning.sparsity",
            remedy=f"Ask for at least {math.ceil(least * 1e4) / 1e4:g}.",
            mends=[Mend("pruning.sparsity", math.ceil(least * 1e4) / 1e4)],
        )
    if wanted < possible[0] - step / 2:
        most = 1.0 - possible[0] / total
        raise InvalidSpec(
            f"at most {total - possible[0]} of {total} experts can be removed: "
            f"{_needed(routing)}, and pruning.min_keep_fraction and its like hold",
            field="pruning.sparsity",
            remedy=f"Ask for at most {math.floor(most * 1e4) / 1e4:g}.",
            mends=[Mend("pruning.sparsity", math.floor(most * 1e4) / 1e4)],
        )
    return min(possible, key=lambda count: (abs(count - wanted), -count))


def checked_count(
    routing: Routing,
    count: int,
    *,
    multiple_of: int,
    min_keep_fraction: float,
    max_layer_sparsity: float,
) -> int:
    """A number of experts that every layer is to keep.

    Raises:
        InvalidSpec: so many cannot stay; the remedy is the nearest number that can.
    """
    possible, step = _possible_counts(routing, multiple_of, min_keep_fraction, max_layer_sparsity)
    if count in possible:
        return count
    total = routing.experts
    if count >= total:
        message = f"a layer has {total} experts, and {count} of them would stay"
    elif count < possible[0]:
        message = f"at least {possible[0]} experts of a layer must stay: {_needed(routing)}"
        if possible[0] > least_kept(routing):
            message += ", and pruning.min_keep_fraction and its like hold"
    elif count % routing.groups:
        message = f"{count} is not a multiple of {step}: experts form {routing.groups} groups"
    else:
        message = f"{count} is not a multiple of {step} (pruning.multiple_of)"
    above = [each for each in possible if each > count][:1]
    below = [each for each in possible if each < count][-1:]
    raise InvalidSpec(
        message,
        field="pruning.expert_count",
        remedy=f"Ask for {' or '.join(str(each) for each in (*above, *below))}.",
        mends=[Mend("pruning.expert_count", each) for each in (*above, *below)],
    )


def _possible_counts(
    routing: Routing, multiple_of: int, min_keep_fraction: float, max_layer_sparsity: float
) -> tuple[list[int], int]:
    """Numbers of experts that a layer may keep, ascending, and the step between them.

    Raises:
        InvalidSpec: none can be removed.
    """
    step = math.lcm(routing.groups, multiple_of)
    total = routing.experts
    share = max(min_keep_fraction, 1.0 - max_layer_sparsity)
    floor = max(least_kept(routing), math.ceil(share * total - 1e-9))
    if least_kept(routing) >= total:
        raise InvalidSpec(
            f"no expert can be removed: of {total} experts {_needed(routing)}",
            field="pruning.structures",
            remedy="Remove FFN channels instead.",
            mends=[Mend("pruning.structures", ["ffn_channels"])],
        )
    possible = [count for count in range(step, total, step) if count >= floor]
    if not possible:
        raise InvalidSpec(
            f"no expert can be removed: {floor} of {total} must stay, in multiples of {step}",
            field="pruning.structures",
            remedy="Remove FFN channels instead.",
            mends=[Mend("pruning.structures", ["ffn_channels"])],
        )
    return possible, step


def first_experts(config: ModelConfig, counts: Sequence[int]) -> list[list[int]]:
    """So many experts of each layer, if it has some, the first of each group."""
    groups = routing_of(config).groups

    def first(experts: Experts, count: int) -> list[int]:
        size, stay = experts.count // groups, count // groups
        return [group * size + number for group in range(groups) for number in range(stay)]

    return [
        [] if experts is None else first(experts, count)
        for experts, count in zip(
            (experts_of(config, layer) for layer in range(config.layers)), counts, strict=True
        )
    ]


def removed_share(config: ModelConfig, kept: Kept) -> float:
    """Share of the routed experts' parameters that goes."""
    each = [expert_parameters(config, layer) for layer in range(config.layers)]
    held = [experts_of(config, layer) for layer in range(config.layers)]
    before = sum(
        size * (0 if has is None else has.count) for size, has in zip(each, held, strict=True)
    )
    after = sum(size * len(stay) for size, stay in zip(each, kept, strict=True))
    return 1.0 - after / before


def without_experts(config: ModelConfig, kept: Kept, *, equally: bool = True) -> ModelConfig:
    """The model with these experts alone.

    Args:
        config: The dense model.
        kept: The experts that stay.
        equally: Whether every layer keeps equally many, and config.json says how many. Else it
            says the dense number, and what layers have is in a section of our own.
    """
    routing, generic = routing_of(config), config.generic
    assert generic is not None  # noqa: S101 - it has a routing
    blocks = [
        replace(block, generic=_with(block.generic, len(each)))
        for block, each in zip(config.blocks, kept, strict=True)
    ]
    if not equally:
        return replace(config, blocks=tuple(blocks))
    (count,) = {len(each) for each in kept if each}
    raw = with_count(json.loads(generic.config_json), routing, count)
    return replace(
        config,
        blocks=tuple(blocks),
        generic=replace(
            generic,
            config_json=json.dumps(raw, sort_keys=True),
            routing=replace(routing, experts=count),
        ),
    )


def with_count(raw: dict[str, Any], routing: Routing, count: int) -> dict[str, Any]:
    """A config.json with another number of experts, under each key that it has for that."""
    part = raw.get("text_config")
    if isinstance(part, dict):  # Of a model that sees images as well.
        return raw | {"text_config": with_count(part, routing, count)}
    keys = [key for key in routing.count_keys if key in raw] or routing.count_keys[:1]
    return raw | dict.fromkeys(keys, count)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor of the model without experts comes from.

    Attributes:
        name: The dense tensor.
        axis: The axis that is cut; None: none is.
        indices: What stays of it.
    """

    name: str
    axis: int | None = None
    indices: tuple[int, ...] = ()


def origins(config: ModelConfig, kept: Kept) -> dict[str, Origin]:
    """Tensors of the model without experts, by name, that are not the dense ones of that name."""
    found: dict[str, Origin] = {}
    for layer, stay in enumerate(kept):
        experts, generic = experts_of(config, layer), config.blocks[layer].generic
        if experts is None or generic is None:
            continue
        shapes = dict(generic.tensors)
        for name in experts.own:
            for new, old in enumerate(stay):
                found[tensor_name(config, layer, name.format(new))] = Origin(
                    tensor_name(config, layer, name.format(old))
                )
        for name, axis in experts.sliced:
            full = tensor_name(config, layer, name)
            rest = range(experts.count, shapes[name][axis])
            found[full] = Origin(full, axis, (*stay, *rest))
    return found


def expert_tensors(config: ModelConfig) -> dict[str, int]:
    """The layer of each tensor that changes with the number of experts, by name."""
    return {
        tensor_name(config, layer, role): layer
        for layer in range(config.layers)
        if (experts := experts_of(config, layer)) is not None
        for role in (
            *(name for name, _ in experts.sliced),
            *(name.format(number) for name in experts.own for number in range(experts.count)),
        )
    }


def _with(generic: GenericLayer | None, count: int) -> GenericLayer | None:
    """A layer with fewer experts; itself if it has none."""
    if generic is None or generic.experts is None:
        return generic
    experts, shapes = generic.experts, dict(generic.tensors)
    for name in experts.own:
        for number in range(count, experts.count):
            del shapes[name.format(number)]
    for name, axis in experts.sliced:
        shape = shapes[name]
        size = shape[axis] - experts.count + count
        shapes[name] = (*shape[:axis], size, *shape[axis + 1 :])
    return replace(generic, tensors=tuple(shapes.items()), experts=replace(experts, count=count))
