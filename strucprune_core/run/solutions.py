"""Solution files: what is left of a layer's sites, and the other matrices that were trained.

<site>.kept            structures that stay, (k,) int64
<site>.weight          their columns of the output matrix, (d x k * columns) float32
<site>.trained.<role>  coupled tensors that are more than a cut of the dense ones, float32
others.<role>          matrices outside the sites, trained with the whole model, float32
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from strucprune_core.checkpoint.bundle import bundle_names, map_from_bundle
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.pruned_weights import SiteSolution
from strucprune_core.models.structures import Site, sites
from strucprune_core.models.tensors import layer_tensors

_OTHERS = "others."
# What classes of transformers call a router.
_ROUTER = re.compile(r"(^|[._])(router|gate|wg)\.(weight|w)$|router")


def load_solution(file: Path, site: Site) -> SiteSolution:
    """A site's part of a solution file, mapped into the host's memory."""
    prefix = f"{site.name}.trained."
    return SiteSolution(
        kept=_mapped(file, f"{site.name}.kept"),
        weight=_mapped(file, f"{site.name}.weight"),
        trained={
            name.removeprefix(prefix): _mapped(file, name)
            for name in bundle_names(file)
            if name.startswith(prefix)
        },
    )


def load_other(file: Path, role: str) -> Tensor:
    """A trained matrix outside the sites, mapped into the host's memory."""
    return _mapped(file, f"{_OTHERS}{role}")


def solution_tensors(solutions: Iterable[tuple[Site, SiteSolution]]) -> dict[str, Tensor]:
    """The parts of sites of a layer's solution file."""
    tensors: dict[str, Tensor] = {}
    for site, solution in solutions:
        tensors[f"{site.name}.kept"] = solution.kept
        tensors[f"{site.name}.weight"] = solution.weight
        for role, weight in solution.trained.items():
            tensors[f"{site.name}.trained.{role}"] = weight
    return tensors


def other_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of matrices outside the sites, given by role."""
    return {f"{_OTHERS}{role}": weight for role, weight in weights.items()}


def distilled_roles(config: ModelConfig, layer: int) -> list[str]:
    """Matrices of a layer that are trained with the whole model: all but routers."""
    router = f"{config.blocks[layer].names.router}.weight"
    shapes = layer_tensors(config, layer)
    matrices = [role for role, shape in shapes.items() if len(shape) == 2 and role != router]
    if config.generic is None:
        return matrices
    return [role for role in matrices if _ROUTER.search(role) is None]


def recovered_roles(config: ModelConfig, layer: int) -> list[str]:
    """Matrices of a layer that are trained layer by layer: those of its FFNs."""
    return [
        part.role
        for site in sites(config, layer, ("ffn_channels",))
        for part in (site.output, *site.coupled)
        if part.role.endswith(".weight")
    ]


def _mapped(file: Path, name: str) -> Tensor:
    return torch.from_numpy(map_from_bundle(file, name))
