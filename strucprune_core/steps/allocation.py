"""`curve.l`, `probe.g` and `allocate`: damage curves, layer energies, and the widths they give."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from strucprune_core.allocation.budget import WidthRule
from strucprune_core.allocation.energies import PROBE_SPARSITY, energy
from strucprune_core.allocation.threshold import Allocation, allocate_by_threshold
from strucprune_core.allocation.uniform import allocate_uniformly
from strucprune_core.models.adapter import LayerWeights
from strucprune_core.models.forward import run_layer
from strucprune_core.models.vocabulary import kl_divergences
from strucprune_core.solver.damage_curve import damage_curve
from strucprune_core.solver.ridge import ridge
from strucprune_core.steps.capture import probe_rows
from strucprune_core.steps.job import Job
from strucprune_core.units import Unit, probe_groups
from strucprune_core.workspace import Draft


@torch.inference_mode()
def curve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write order.npy (f,) int64 and damage.npy (f,) float64 of a layer."""
    result = damage_curve(load_gram(job, unit.index), load_down_projection(job, unit.index))
    np.save(draft.path("order.npy"), result.order.numpy())
    np.save(draft.path("damage.npy"), result.damage.numpy())


@torch.inference_mode()
def probe(job: Job, unit: Unit, draft: Draft) -> None:
    """Prune each layer of a group alone; value `kl`: what that does to the model's output.

    The group's runs pass through the remaining layers side by side, so that each weight is read
    once: after layer l, `runs` holds the probe windows of every model pruned at or before l.
    """
    group = probe_groups(job.config.layers)[unit.index]
    runs: list[NDArray[np.float32]] = []
    for layer in range(group.start, job.config.layers):
        weights = job.dense.layer(layer)
        runs = [run_layer(job.dense, weights, run).hidden.cpu().numpy() for run in runs]
        if layer in group:
            start = np.asarray(job.array(f"capture.{layer}", "probe_input.npy"))
            pruned = _prune_alone(job, layer, weights)
            runs.append(run_layer(job.dense, pruned, start).hidden.cpu().numpy())
        job.tick(layer - group.start, job.config.layers - group.start)
    dense = probe_rows(job, job.array(f"capture.{job.config.layers - 1}", "hidden.npy"))
    d = job.config.hidden_size
    draft.values["kl"] = kl_divergences(
        job.dense, dense.reshape(-1, d), [run.reshape(-1, d) for run in runs]
    )


def allocate(job: Job, unit: Unit, draft: Draft) -> None:
    """Values: `widths`, `energies` and `predicted_damages` per layer, and the `price`."""
    layers = range(job.config.layers)
    damages = [np.asarray(job.array(f"curve.{layer}", "damage.npy")) for layer in layers]
    energies = _energies(job, damages)
    allocation = _allocate(job, damages, energies)
    draft.values["widths"] = list(allocation.widths)
    draft.values["price"] = allocation.price
    draft.values["energies"] = energies
    draft.values["predicted_damages"] = [
        alpha * float(damage[: len(damage) - width].sum())
        for alpha, damage, width in zip(energies, damages, allocation.widths, strict=True)
    ]


def load_gram(job: Job, layer: int) -> torch.Tensor:
    """A layer's Gram matrix on the device, (f x f) float32."""
    return torch.from_numpy(np.array(job.array(f"capture.{layer}", "gram.npy"))).to(job.device)


def load_down_projection(job: Job, layer: int) -> torch.Tensor:
    """A layer's dense down projection on the device, (d x f) float32."""
    name = job.adapter.tensor_name(layer, job.adapter.down_projection)
    return job.reader.tensor(name, device=job.device)


def _probe_removals(width: int) -> int:
    return max(1, round(PROBE_SPARSITY * width))


def _prune_alone(job: Job, layer: int, weights: LayerWeights) -> LayerWeights:
    """A layer's weights without the channels that the probe removes."""
    order = torch.from_numpy(np.array(job.array(f"curve.{layer}", "order.npy")))
    kept = order[_probe_removals(len(order)) :].sort().values.to(job.device)
    down = job.adapter.down_projection
    solution = ridge(load_gram(job, layer), weights[down], kept, job.damping)
    pruned = dict(weights)
    for coupled in job.adapter.ffn_channel:
        pruned[coupled.role] = weights[coupled.role].index_select(coupled.axis, kept)
    pruned[down] = solution.weight.float()
    return pruned


def _energies(job: Job, damages: list[NDArray[np.float64]]) -> list[float]:
    if job.spec.pruning.allocation == "uniform":
        return [1.0] * len(damages)
    groups = range(len(probe_groups(job.config.layers)))
    kls = [kl for group in groups for kl in job.workspace.values(f"probe.{group}")["kl"]]
    return [
        energy(kl, float(damage[: _probe_removals(len(damage))].sum()))
        for kl, damage in zip(kls, damages, strict=True)
    ]


def _allocate(job: Job, damages: list[NDArray[np.float64]], energies: list[float]) -> Allocation:
    pruning = job.spec.pruning
    rule = WidthRule(pruning.min_keep_fraction, pruning.multiple_of)
    if pruning.allocation == "uniform":
        return allocate_uniformly([len(d) for d in damages], pruning.sparsity, rule)
    per_channel = len(job.adapter.ffn_channel) * job.config.hidden_size
    return allocate_by_threshold(
        damages, energies, pruning.sparsity, rule, [per_channel] * len(damages)
    )
