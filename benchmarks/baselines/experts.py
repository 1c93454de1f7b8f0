"""Other choices of the experts that stay in a layer, on transformers' `qwen3_moe`.

    REAP        S_j = 1 / |X_j| sum over x in X_j of g_j(x) ||f_j(x)||_2
    frequency   |X_j|
    random      a permutation

X_j are the tokens that are sent to expert j, f_j(x) its output and g_j(x) the router's weight. The
first is equation 9 of Lasby et al. 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE
compression", arXiv:2510.13999. Nothing here is shared with StrucPrune's own recording of experts:
routing and experts are written out again from the layer's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Kept = list[list[int]]
"""Experts of each layer that stay, ascending."""


@dataclass
class Seen:
    """What a layer's experts do on some text.

    Attributes:
        tokens: |X_j|, (E,).
        gated: Sum over X_j of g_j ||f_j||, (E,) float64.
    """

    tokens: Tensor
    gated: Tensor


def blocks(model: Any) -> list[Any]:
    """The mixture of each layer."""
    return [layer.mlp for layer in model.model.layers]


@torch.no_grad()
def seen_by(model: Any, windows: NDArray[np.int32]) -> list[Seen]:
    """What each layer's experts do on these windows, (samples x length)."""
    found = []
    handles = []
    for block in blocks(model):
        count = len(block.gate.weight)
        seen = Seen(torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.float64))
        handles.append(block.register_forward_pre_hook(_watching(seen)))
        found.append(seen)
    for window in windows:
        model(torch.from_numpy(window).long()[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def _watching(seen: Seen) -> Any:
    def watch(block: Any, arguments: tuple[Tensor, ...]) -> None:
        add(seen, block, arguments[0].flatten(0, 1))

    return watch


def add(seen: Seen, block: Any, inputs: Tensor) -> None:
    """Add tokens (n x d) that reach a mixture."""
    shares = (inputs @ block.gate.weight.T).softmax(-1)
    gates, chosen = shares.sort(-1, descending=True)
    gates, chosen = gates[:, : block.gate.top_k], chosen[:, : block.gate.top_k]
    gates = gates / gates.sum(-1, keepdim=True)
    for expert in range(len(seen.tokens)):
        to_this = chosen == expert
        rows = to_this.any(-1)
        gate, up = (inputs[rows] @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
        outputs = (nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].T
        weights = (gates * to_this).sum(-1)[rows]
        seen.tokens[expert] += int(rows.sum())
        seen.gated[expert] += (weights.double() * outputs.double().norm(dim=-1)).sum()


def by_reap(seen: Sequence[Seen], count: int) -> Kept:
    """Those of the highest S_j; experts that no token reaches have none."""
    return [_highest(each.gated / each.tokens.clamp(min=1), count) for each in seen]


def by_frequency(seen: Sequence[Seen], count: int) -> Kept:
    """Those that most tokens reach."""
    return [_highest(each.tokens, count) for each in seen]


def by_chance(layers: int, experts: int, count: int, seed: int) -> Kept:
    """Any."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return [sorted(generator.permutation(experts)[:count].tolist()) for _ in range(layers)]


def _highest(scores: Tensor, count: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda j: (-float(scores[j]), j))
    return sorted(order[:count])


@torch.no_grad()
def keep(model: Any, kept: Kept) -> None:
    """Remove all other experts."""
    for block, stay in zip(blocks(model), kept, strict=True):
        experts, gate = block.experts, block.gate
        for module, name in (
            (experts, "gate_up_proj"),
            (experts, "down_proj"),
            (gate, "weight"),
        ):
            matrix = getattr(module, name)[stay].clone()
            setattr(module, name, nn.Parameter(matrix, requires_grad=False))
        experts.num_experts = gate.num_experts = len(stay)
    model.config.num_experts = len(kept[0])
