"""The rows of `benchmarks.rivals`: add a line to `METHODS` and it is compared.

A `Baseline` prunes a whole transformers model in memory; statistics that it shares with other rows
come from a stage, which runs once. A `Job` is StrucPrune itself with other pruning options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.baselines import (
    block_influence,
    flap,
    least_squares,
    magnitude,
    random_choice,
    taylor,
    wanda_sp,
)
from benchmarks.baselines.selection import keep_globally
from benchmarks.baselines.sites import Scope, Site, layer_sites
from benchmarks.baselines.statistics import Gram, Moments, embedded, run_layer

Windows = NDArray[np.int32]


@dataclass(frozen=True)
class Case:
    """What a baseline is given.

    Attributes:
        model: A transformers model, to be pruned in place.
        sites: Its sites.
        scope: Which kinds of sites these are.
        sparsity: Share of the sites' weights to remove.
        windows: Calibration windows, (samples x length).
        seed: For methods that draw.
        stages: Folder of each stage that the method names.
    """

    model: Any
    sites: Sequence[Site]
    scope: Scope
    sparsity: float
    windows: Windows
    seed: int
    stages: Mapping[str, Path]

    def statistics(self, stage: str, site: int) -> dict[str, Tensor]:
        """What a stage found at the i-th site."""
        found: dict[str, Tensor] = torch.load(self.stages[stage] / f"{site}.pt", weights_only=True)
        return found

    def everywhere(self, stage: str) -> list[dict[str, Tensor]]:
        """What a stage found at every site."""
        return [self.statistics(stage, site) for site in range(len(self.sites))]

    def scores(self, stage: str) -> list[Tensor]:
        """Scores that a stage gave every site's structures."""
        return [found["scores"] for found in self.everywhere(stage)]


@dataclass(frozen=True)
class Baseline:
    """A method other than ours.

    Attributes:
        key: Its name on the command line.
        title: Its name in the table.
        prune: Prunes the model of a case.
        stages: Statistics it needs, names in `STAGES`.
        attention: Whether it can remove KV groups too.
    """

    key: str
    title: str
    prune: Callable[[Case], None]
    stages: tuple[str, ...] = ()
    attention: bool = True


@dataclass(frozen=True)
class Job:
    """StrucPrune: `pruning` holds the options of a job's `pruning` section beside the sparsity."""

    key: str
    title: str
    pruning: Mapping[str, Any] = field(default_factory=dict)
    attention: bool = True


Method = Baseline | Job


def _random(case: Case) -> None:
    random_choice.prune(case.sites, case.sparsity, case.seed)


def _magnitude(case: Case) -> None:
    magnitude.prune(case.sites, case.sparsity)


def _wanda_sp(case: Case) -> None:
    wanda_sp.prune(case.model, case.scope, case.windows, case.sparsity)


def _flap(case: Case) -> None:
    flap.prune(case.sites, case.everywhere("moments"), case.sparsity)


def _taylor_vector(case: Case) -> None:
    taylor.prune(case.sites, case.scores("taylor-vector"), case.sparsity)


def _taylor_element(case: Case) -> None:
    taylor.prune(case.sites, case.scores("taylor-element"), case.sparsity)


def _taylor_element_ridge(case: Case) -> None:
    _repaired(case, "taylor-element")


def _taylor_ridge(case: Case) -> None:
    _repaired(case, "taylor-vector")


def _repaired(case: Case, scores: str) -> None:
    """Keep by global scores, then solve what is kept again."""
    kept = keep_globally(case.sites, case.scores(scores), case.sparsity)
    least_squares.repair(case.sites, kept, _grams(case), case.windows.size)


def _wanda_ridge(case: Case) -> None:
    least_squares.prune(case.sites, _grams(case), "wanda", case.sparsity, case.windows.size)


def _obs_ridge(case: Case) -> None:
    least_squares.prune(case.sites, _grams(case), "obs", case.sparsity, case.windows.size)


def _grams(case: Case) -> least_squares.Statistics:
    return lambda site: case.statistics("grams", site)


def _block_influence(case: Case) -> None:
    """Whole layers: the stage has one value for each site, the same for all sites of a layer."""
    found = dict(zip((s.layer for s in case.sites), case.scores("block-influence"), strict=True))
    scores = [float(found[layer]) for layer in range(len(case.model.model.layers))]
    block_influence.prune(case.model, scores, case.sparsity)


METHODS: tuple[Method, ...] = (
    Baseline("random", "random", _random),
    Baseline("magnitude", "magnitude-sp", _magnitude),
    Baseline(
        "block-influence",
        "whole layers by block influence (ShortGPT)",
        _block_influence,
        ("block-influence",),
    ),
    Baseline("wanda-sp", "Wanda-sp", _wanda_sp),
    Baseline("flap", "FLAP (score + bias)", _flap, ("moments",)),
    Baseline(
        "taylor-element",
        "global Taylor, LLM-Pruner's element",
        _taylor_element,
        ("taylor-element",),
    ),
    Baseline(
        "taylor-element-ridge",
        "global Taylor, LLM-Pruner's element + least squares",
        _taylor_element_ridge,
        ("taylor-element", "grams"),
    ),
    Baseline("taylor", "global Taylor, per sample", _taylor_vector, ("taylor-vector",)),
    Baseline(
        "taylor-ridge",
        "global Taylor, per sample + least squares",
        _taylor_ridge,
        ("taylor-vector", "grams"),
    ),
    Baseline("wanda-ridge", "uniform Wanda + least squares", _wanda_ridge, ("grams",)),
    Baseline("obs-ridge", "uniform OBS + least squares", _obs_ridge, ("grams",), attention=False),
    Job("ours", "StrucPrune (OBS, threshold)"),
    Job("ours-softmax", "StrucPrune (OBS, softmax)", {"allocation": "softmax"}),
    Job("ours-admm", "StrucPrune (ADMM, threshold)", {"solver": "admm"}),
    Job(
        "ours-admm-softmax",
        "StrucPrune (ADMM, softmax)",
        {"solver": "admm", "allocation": "softmax"},
    ),
    Job("ours-recover", "StrucPrune + recovery", {"recover": {"steps": 100}}),
    Job(
        "ours-distill",
        "StrucPrune + recovery + distillation",
        {"recover": {"steps": 100}, "distill": {"steps": 40}},
    ),
)


def _moments(model: Any, scope: Scope, windows: Windows) -> Iterator[dict[str, Tensor]]:
    yield from _observed(model, scope, windows, Moments)


def _gram_matrices(model: Any, scope: Scope, windows: Windows) -> Iterator[dict[str, Tensor]]:
    yield from _observed(model, scope, windows, Gram)


def _observed(
    model: Any, scope: Scope, windows: Windows, make: Callable[[int], Moments | Gram]
) -> Iterator[dict[str, Tensor]]:
    """Statistics of each site of the dense model; only one layer's are held at a time."""
    hidden = embedded(model, windows)
    for layer in range(len(model.model.layers)):
        observers: dict[nn.Linear, Moments | Gram] = {
            site.consumer: make(site.consumer.in_features)
            for site in layer_sites(model, layer, scope)
        }
        hidden = run_layer(model, layer, hidden, observers)
        for observer in observers.values():
            yield observer.tensors()


def _taylor(form: taylor.Form) -> Callable[[Any, Scope, Windows], Iterator[dict[str, Tensor]]]:
    def scores(model: Any, scope: Scope, windows: Windows) -> Iterator[dict[str, Tensor]]:
        sites = [s for i in range(len(model.model.layers)) for s in layer_sites(model, i, scope)]
        for found in taylor.scores(model, sites, windows, form):
            yield {"scores": found}

    return scores


def _influences(model: Any, scope: Scope, windows: Windows) -> Iterator[dict[str, Tensor]]:
    for layer, found in enumerate(block_influence.influences(model, windows)):
        for _ in layer_sites(model, layer, scope):
            yield {"scores": torch.tensor(found)}


# Statistics of every site, in the order of `sites.model_sites`.
STAGES: dict[str, Callable[[Any, Scope, Windows], Iterator[dict[str, Tensor]]]] = {
    "moments": _moments,
    "grams": _gram_matrices,
    "block-influence": _influences,
    "taylor-vector": _taylor("vector"),
    "taylor-element": _taylor("element"),
}
