"""The sparsity of a job that says what its result is to come to. No torch.

It is the least with which the result is small enough, found by halving: the result of a sparsity
follows from the model's config and the sizes of its files, and more sparsity makes nothing larger.
The sparsity is a function of the job and the model, so every attempt finds the same.

That of a perplexity is found while the job runs (`plan.search`). Until then it is planned with one
that the model allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from strucprune_core.errors import InvalidSpec, Mend
from strucprune_core.plan.estimate import export_bytes, removed_by
from strucprune_core.plan.facts import ModelFacts
from strucprune_core.plan.predicted_speed import predicted_speed
from strucprune_core.plan.sites import equal_widths, plan_sites, pruned_config
from strucprune_core.spec import JobSpec, PruningSpec, TargetSpec

# The sparsity is found to one part in a million; the result moves in whole structures anyway.
_STEPS, _DIGITS = 20, 6
# Of which one is allowed if any is: some models allow only coarse steps, some limits only few.
_SPREAD = (
    0.5,
    0.25,
    0.75,
    0.125,
    0.375,
    0.625,
    0.875,
    0.06,
    0.03,
    0.01,
    0.003,
    0.001,
    0.0003,
    1e-4,
)

PLANNED_SPARSITY = 0.3
"""What a job is planned with whose sparsity is found while it runs, if the model allows it."""

Check = Callable[[PruningSpec], object]
"""Raises `InvalidSpec` for a sparsity that the model does not allow."""


def resolved(spec: JobSpec, facts: ModelFacts, check: Check) -> JobSpec:
    """The job with the sparsity that its target comes to, or that it is planned with.

    Any other job as it is.

    Args:
        spec: The job.
        facts: Its model.
        check: Whether a sparsity can be had of it.

    Raises:
        InvalidSpec: the target cannot be reached, or asks for nothing to be removed.
    """
    target = spec.pruning.target
    if target is None or spec.pruning.sparsity is not None:
        return spec
    if target.speedup is not None:
        return _at_speedup(spec, facts, check, target.speedup)
    if spec.tries:
        least, most = allowed_range(spec, check)
        return spec.at(min(max(PLANNED_SPARSITY, least), most))
    field = f"pruning.target.{target.kind}"
    if _is_small_enough(_dense(spec, facts), target.most):
        raise InvalidSpec(
            f"the model has no more than {target.most:,} {_what(target)} as it is",
            field=field,
            remedy="Ask for less.",
        )
    most = _most_sparsity(spec, check)
    least_left = result_of(spec.at(most), facts)
    if least_left > target.most:
        raise InvalidSpec(
            f"no sparsity leaves {target.most:,} {_what(target)} or less; the least that can be "
            f"reached is {least_left:,}",
            field=field,
            remedy=f"Ask for at least {least_left:,}, remove further structures, or lower "
            "pruning.min_keep_fraction.",
            mends=[Mend(field, least_left)],
        )
    return spec.at(
        _least_sparsity(spec, check, most, lambda at: result_of(at, facts) <= target.most)
    )


def _at_speedup(spec: JobSpec, facts: ModelFacts, check: Check, asked: float) -> JobSpec:
    """The job with the least sparsity whose result is so much faster, by a device's table."""

    def predicted(at: JobSpec) -> float:
        speed = predicted_speed(at, facts)
        return 0.0 if speed is None else speed.predicted

    most = _most_sparsity(spec, check)
    best = predicted(spec.at(most))
    if best < asked:
        target, reached = _target(spec), math.floor(best * 1000) / 1000
        raise InvalidSpec(
            f"no sparsity makes {target.of} {asked:.4g} times as fast on that device; the most "
            f"that can be reached is {reached:.3f}",
            field="pruning.target.speedup",
            remedy=f"Ask for at most {reached:.3f}, remove further structures, or lower "
            "pruning.min_keep_fraction.",
        )
    return spec.at(_least_sparsity(spec, check, most, lambda at: predicted(at) >= asked))


def result_of(spec: JobSpec, facts: ModelFacts) -> int:
    """What a job's result comes to, in what its target counts.

    KV caches are counted as if all layers lost the same share of heads; where blocks go, as if
    none lost any.
    """
    target = _target(spec)
    if target.export is not None:
        return export_bytes(target.export, spec, facts)
    parameters, size, _ = removed_by(spec.pruning, facts)
    if target.kind == "parameters":
        return facts.parameters - parameters
    left = facts.index.read_bytes - size
    return left if target.kind == "bytes" else left + _cache_bytes(spec, facts)


def _target(spec: JobSpec) -> TargetSpec:
    """The target of a job that has one."""
    assert spec.pruning.target is not None  # noqa: S101 - asked for no other job
    return spec.pruning.target


def _cache_bytes(spec: JobSpec, facts: ModelFacts) -> int:
    pruning, config = spec.pruning, facts.config
    target = _target(spec)
    if "kv_groups" in pruning.structures and pruning.sparsity and not pruning.removes_blocks:
        planned = plan_sites(config, pruning)
        kept = equal_widths(planned, pruning.sparsity)
        config = pruned_config(config, pruning, planned, kept)
    values = config.kv_cache_values_per_token
    if values is None:
        raise InvalidSpec(
            f"architecture '{config.family}' keeps something else than keys and values",
            field="pruning.target.memory_bytes",
            remedy="Use target.bytes, or a sparsity.",
        )
    stored = facts.index.read_bytes // max(1, facts.parameters)
    return values * stored * target.context_tokens * target.batch_sequences


def _dense(spec: JobSpec, facts: ModelFacts) -> int | None:
    """What the dense model comes to; None where it is no such form."""
    target = _target(spec)
    if target.kind == "parameters":
        return facts.parameters
    if target.kind == "memory_bytes":
        return facts.index.read_bytes + _cache_bytes(spec, facts)
    return facts.index.read_bytes if target.of == "checkpoint" else None


def _is_small_enough(size: int | None, most: int) -> bool:
    return size is not None and size <= most


def _what(target: TargetSpec) -> str:
    if target.kind == "parameters":
        return "parameters"
    return "bytes" if target.kind == "bytes" else "bytes of weights and KV cache"


def allowed_range(spec: JobSpec, check: Check) -> tuple[float, float]:
    """The lowest and the highest sparsity that the model allows.

    Args:
        spec: The job.
        check: Whether a sparsity can be had of its model.

    Raises:
        InvalidSpec: it allows none.
    """
    most = _most_sparsity(spec, check)
    return _least_sparsity(spec, check, most, lambda _: True), most


def is_allowed(spec: JobSpec, sparsity: float, check: Check) -> bool:
    """Whether the model allows a sparsity."""
    try:
        check(spec.pruning.at(sparsity))
    except InvalidSpec:
        return False
    return True


def _most_sparsity(spec: JobSpec, check: Check) -> float:
    """The highest that the model allows.

    Raises:
        InvalidSpec: it allows none.
    """
    allowed = (each for each in _SPREAD if is_allowed(spec, each, check))
    low, high = next(allowed, None), 1.0
    if low is None:
        check(spec.pruning.at(_SPREAD[0]))
        low = _SPREAD[0]
    for _ in range(_STEPS):
        middle = round((low + high) / 2, _DIGITS)
        if middle < 1.0 and is_allowed(spec, middle, check):
            low = middle
        else:
            high = middle
    return low


def _least_sparsity(
    spec: JobSpec, check: Check, most: float, is_enough: Callable[[JobSpec], bool]
) -> float:
    """The lowest whose result is enough; with `most` it is."""
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = round((low + high) / 2, _DIGITS)
        if not low < middle < high:
            break
        allowed = is_allowed(spec, middle, check)  # Less than a step is not.
        if allowed and is_enough(spec.at(middle)):
            high = middle
        else:
            low = middle
    return high
