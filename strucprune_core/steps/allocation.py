"""`curve.l`, `probe.g` and `allocate`: damage curves, energies, and the widths they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.allocation.energies import PROBE_SPARSITY, energy
from strucprune_core.allocation.softmax import allocate_by_softmax
from strucprune_core.allocation.threshold import Allocation, allocate_by_threshold
from strucprune_core.allocation.uniform import allocate_uniformly
from strucprune_core.checkpoint.bundle import save_bundle
from strucprune_core.models.decoder import Decoder, LayerWeights
from strucprune_core.models.structures import Site, shrink
from strucprune_core.models.tensors import tensor_name
from strucprune_core.models.vocabulary import kl_divergences
from strucprune_core.planning import PlannedSite
from strucprune_core.solver.damage_curve import DamageCurve, damage_curve
from strucprune_core.solver.group_damage_curve import group_damage_curve
from strucprune_core.solver.ridge import ridge
from strucprune_core.steps.capture import GRAMS, probe_rows
from strucprune_core.steps.job import Job
from strucprune_core.surgery.pruned_source import SiteSolution, prune_layer
from strucprune_core.units import Unit, probe_groups
from strucprune_core.workspace import Draft

CURVES = "curves.safetensors"


@torch.inference_mode()
def curve(job: Job, unit: Unit, draft: Draft) -> None:
    """Write curves.safetensors: per site its order (m,) int64 and damage (m,) float64."""
    tensors: dict[str, Tensor] = {}
    for site in job.sites(unit.index):
        result = _curve(job, unit.index, site)
        tensors |= {f"{site.name}.order": result.order, f"{site.name}.damage": result.damage}
    save_bundle(draft.path(CURVES), tensors)


@dataclass(frozen=True, slots=True)
class _Run:
    """The probe windows on their way through a model in which one kind of site is pruned."""

    layer: int
    kind: str
    hidden: NDArray[np.float32]


@torch.inference_mode()
def probe(job: Job, unit: Unit, draft: Draft) -> None:
    """Prune the sites of each kind of each layer of a group alone; what does the model then say?

    Value `kl`: [layer, kind, mean KL divergence per token] of each. The group's runs pass through
    the remaining layers side by side, so that each weight is read once.
    """
    group = probe_groups(job.config.layers)[unit.index]
    runs: list[_Run] = []
    for layer in range(group.start, job.config.layers):
        weights = job.dense.layer(layer)
        runs = [
            _Run(run.layer, run.kind, _forward(job, layer, weights, run.hidden)) for run in runs
        ]
        if layer in group:
            start = np.asarray(job.array(f"capture.{layer}", "probe_input.npy"))
            for kind in dict.fromkeys(site.kind for site in job.sites(layer)):
                runs.append(_Run(layer, kind, _forward_pruned(job, layer, kind, weights, start)))
        job.tick(layer - group.start, job.config.layers - group.start)
    dense = probe_rows(job, job.array(f"capture.{job.config.layers - 1}", "hidden.npy"))
    d = job.config.hidden_size
    kls = kl_divergences(
        job.dense, dense.reshape(-1, d), [run.hidden.reshape(-1, d) for run in runs]
    )
    draft.values["kl"] = [[run.layer, run.kind, kl] for run, kl in zip(runs, kls, strict=True)]


def allocate(job: Job, unit: Unit, draft: Draft) -> None:
    """Values by planned site: `widths`, `energies`, `predicted_damages`; `price`, `temperature`."""
    damages = [_damages(job, place) for place in job.planned]
    energies = _energies(job, damages)
    allocation = _allocate(job, damages, energies)
    draft.values["widths"] = list(allocation.widths)
    draft.values["price"] = allocation.price
    draft.values["temperature"] = allocation.temperature
    draft.values["energies"] = energies
    draft.values["predicted_damages"] = [
        alpha * float(damage[: len(damage) - width].sum())
        for alpha, damage, width in zip(energies, damages, allocation.widths, strict=True)
    ]


def load_gram(job: Job, layer: int, site: Site) -> Tensor:
    """A site's Gram matrix on the device, (m x m) float32."""
    return job.tensor(f"capture.{layer}", GRAMS, site.name)


def load_output_matrix(job: Job, layer: int, site: Site) -> Tensor:
    """A site's dense output matrix on the device, (d x m) float32."""
    name = tensor_name(job.config, layer, site.output.role)
    stored = job.reader.tensor(name, device=job.device, dtype=torch.float32)
    return stored.T if site.output.axis == 0 else stored


def load_order(job: Job, layer: int, site: Site) -> Tensor:
    """Structures of a site, first to go first, (structures,) int64 on the host."""
    return job.tensor(f"curve.{layer}", CURVES, f"{site.name}.order").cpu()


def solve_site(job: Job, layer: int, site: Site, kept: Tensor) -> tuple[SiteSolution, float, int]:
    """The site's ridge solution for the structures `kept`, with its damping and retries."""
    columns = torch.tensor(site.output.indices(kept.tolist()), device=job.device)
    dense = load_output_matrix(job, layer, site)
    solution = ridge(load_gram(job, layer, site), dense, columns, job.damping)
    return SiteSolution(kept, solution.weight.float()), solution.damping, solution.retries


def _curve(job: Job, layer: int, site: Site) -> DamageCurve:
    gram, matrix = load_gram(job, layer, site), load_output_matrix(job, layer, site)
    if site.columns == 1:
        return damage_curve(gram, matrix)
    return group_damage_curve(gram, matrix, site.columns, site.lockstep)


def _damages(job: Job, place: PlannedSite) -> NDArray[np.float64]:
    name = f"{place.site.name}.damage"
    damage: NDArray[np.float64] = job.tensor(f"curve.{place.layer}", CURVES, name).cpu().numpy()
    return damage


def _probe_removals(site: Site) -> int:
    """Structures that a probe removes: a fixed share, whole rounds, never all."""
    rounds = max(1, round(PROBE_SPARSITY * site.structures / site.lockstep))
    return min(rounds * site.lockstep, site.structures - site.lockstep)


def _forward(
    job: Job, layer: int, weights: LayerWeights, hidden: NDArray[np.float32]
) -> NDArray[np.float32]:
    found: NDArray[np.float32] = job.dense.run_layer(layer, weights, hidden).hidden.cpu().numpy()
    return found


def _forward_pruned(
    job: Job, layer: int, kind: str, weights: LayerWeights, hidden: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One layer whose sites of a kind lack what a probe removes."""
    solved = []
    for site in job.sites(layer):
        if site.kind == kind:
            kept = load_order(job, layer, site)[_probe_removals(site) :].sort().values
            solved.append((site, solve_site(job, layer, site, kept)[0]))
    widths = {site.name: len(solution.kept) for site, solution in solved}
    block = shrink(job.config.blocks[layer], widths, job.spec.pruning.structures)
    x = torch.from_numpy(np.array(hidden)).to(job.device)
    trace = Decoder(job.config).forward_layer(block, x, prune_layer(weights, solved))
    found: NDArray[np.float32] = trace.hidden.cpu().numpy()
    return found


def _energies(job: Job, damages: list[NDArray[np.float64]]) -> list[float]:
    """One energy per planned site; the sites of a kind in a layer share theirs."""
    if not job.probes:
        return [1.0] * len(damages)
    predicted: dict[tuple[int, str], float] = {}
    for place, damage in zip(job.planned, damages, strict=True):
        key = (place.layer, place.site.kind)
        probed = float(damage[: _probe_removals(place.site)].sum())
        predicted[key] = predicted.get(key, 0.0) + probed
    kls: dict[tuple[int, str], float] = {}
    for group in range(len(probe_groups(job.config.layers))):
        for layer, kind, kl in job.workspace.values(f"probe.{group}")["kl"]:
            kls[layer, kind] = kl
    keys = [(place.layer, place.site.kind) for place in job.planned]
    return [energy(kls[key], predicted[key]) for key in keys]


def _allocate(job: Job, damages: list[NDArray[np.float64]], energies: list[float]) -> Allocation:
    sparsity = job.spec.pruning.sparsity
    rules = [place.rule for place in job.planned]
    if job.spec.pruning.allocation == "uniform":
        return allocate_uniformly([len(damage) for damage in damages], sparsity, rules)
    parameters = [place.site.parameters for place in job.planned]
    if job.spec.pruning.allocation == "softmax":
        found = allocate_by_softmax(
            damages, energies, sparsity, rules, parameters, job.spec.pruning.temperature
        )
        return Allocation(found.widths, None, found.temperature)
    return allocate_by_threshold(damages, energies, sparsity, rules, parameters)
