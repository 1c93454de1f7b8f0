"""Cost of each unit in floating-point operations, to show progress at an even pace."""

from __future__ import annotations

from strucprune_core.models.tensors import layer_tensors
from strucprune_core.solver.recovery import RecoveryOptions
from strucprune_core.steps.job import Job
from strucprune_core.units import Unit, distill_units, probe_groups

# A fixed charge per unit for reading, writing and bookkeeping, and the factor by which the small,
# memory-bound updates of a damage curve run slower than large matrix products.
OVERHEAD_FLOPS = 1e9
CURVE_SLOWDOWN = 20.0
# Tokens that a layer computes on while its weights are read.
READING_TOKENS = 64


def unit_costs(job: Job) -> dict[str, float]:
    """Estimated operations of every unit by name."""
    return {unit.name: OVERHEAD_FLOPS + _flops(job, unit) for unit in job.graph}


def _flops(job: Job, unit: Unit) -> float:
    calibration = job.spec.calibration
    if unit.kind == "tokens" and calibration.source == "self":
        return _writing_flops(job)
    if unit.kind == "capture":
        tokens = calibration.samples * calibration.sequence_length
        grams = sum(2.0 * width**2 for width in _site_widths(job, unit.index))
        return tokens * (_layer_flops_per_token(job, unit.index) + grams)
    if unit.kind == "curve":
        return CURVE_SLOWDOWN * sum(width**3 for width in _site_widths(job, unit.index))
    if unit.kind in ("probe", "review"):
        return _probe_flops(job, unit)
    if unit.kind == "gradient":
        return _gradient_flops(job, unit)
    if unit.kind == "recover":
        return _recovery_flops(job, unit.index)
    if unit.kind == "distill":
        return _distillation_flops(job, unit)
    if unit.kind in ("trial", "solve"):
        return 4.0 * sum(width**3 for width in _site_widths(job, unit.index))
    if unit.kind == "evaluate" and job.spec.evaluation is not None:
        tokens = job.spec.evaluation.sequences * job.spec.evaluation.sequence_length
        layers = range(job.config.layers)
        return tokens * (
            sum(_layer_flops_per_token(job, layer) for layer in layers) + _head_flops(job)
        )
    return 0.0


def _site_widths(job: Job, layer: int) -> list[int]:
    """Input columns of each of a layer's sites."""
    return [site.structures * site.columns for site in job.sites(layer)]


def _writing_flops(job: Job) -> float:
    """Every token of every sequence once, and no step faster than the weights can be read."""
    calibration = job.spec.calibration
    once = sum(_layer_flops_per_token(job, layer) for layer in range(job.config.layers))
    per_step = max(calibration.samples, READING_TOKENS) * (once + _head_flops(job))
    return calibration.sequence_length * per_step


def _probe_flops(job: Job, unit: Unit) -> float:
    sequences, length = job.probe_shape
    group = probe_groups(job.config.layers)[unit.index]
    passes = sum(
        _layer_flops_per_token(job, layer) * (min(layer, group.stop - 1) - group.start + 1)
        for layer in range(group.start, job.config.layers)
    )
    return sequences * length * (passes + len(group) * _head_flops(job))


def _gradient_flops(job: Job, unit: Unit) -> float:
    """A layer forth again and back, which is as much as forth: weights have no gradient."""
    sequences, length = job.probe_shape
    group = probe_groups(job.config.layers)[unit.index]
    layers = sum(2.0 * _layer_flops_per_token(job, layer) for layer in group)
    head = 2.0 * _head_flops(job) if group.stop == job.config.layers else 0.0
    return sequences * length * (layers + head)


def _recovery_flops(job: Job, layer: int) -> float:
    """Dense and pruned layer over all tokens, and forth and back in each step."""
    recover, calibration = job.spec.pruning.recover, job.spec.calibration
    steps = 0 if recover is None else recover.steps
    tokens = 2.0 * calibration.samples * calibration.sequence_length
    return (tokens + 3.0 * steps * RecoveryOptions().batch_tokens) * _layer_flops_per_token(
        job, layer
    )


def _distillation_flops(job: Job, unit: Unit) -> float:
    """Forth, forth again and back with gradients of weights: four times forth; the head six."""
    distill = job.spec.pruning.distill
    if distill is None:
        return 0.0
    steps = len(distill_units(distill.steps)[unit.index])
    sequences = min(distill.batch_sequences, job.train_sequences)
    tokens = steps * sequences * job.spec.calibration.sequence_length
    once = sum(_layer_flops_per_token(job, layer) for layer in range(job.config.layers))
    return tokens * (4.0 * once + 6.0 * _head_flops(job))


def _layer_flops_per_token(job: Job, layer: int) -> float:
    shapes = layer_tensors(job.config, layer).values()
    return 2.0 * sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)


def _head_flops(job: Job) -> float:
    return 2.0 * job.config.vocab_size * job.config.hidden_size
