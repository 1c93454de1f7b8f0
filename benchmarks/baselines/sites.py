"""What can be removed of a Llama model in transformers, and its removal.

A site is one layer's FFN or attention. Its structures are FFN channels (a row of gate and of up, a
column of down) or KV groups (a key-value head with its query heads: rows of q, k, v, columns of o).
Every producer's rows and the consumer's columns divide evenly and in order among the structures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Scope = Literal["ffn", "body"]  # FFN channels only, or KV groups too.


@dataclass(frozen=True, slots=True)
class Site:
    """One layer's FFN or attention.

    Attributes:
        layer: Number of the decoder layer.
        kind: "ffn" or "attention".
        producers: gate and up, or q, k and v.
        consumer: down, or o.
        structures: How many structures there are now.
    """

    layer: int
    kind: Literal["ffn", "attention"]
    producers: tuple[nn.Linear, ...]
    consumer: nn.Linear
    structures: int

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """Producers and consumer."""
        return (*self.producers, self.consumer)

    @property
    def parameters(self) -> int:
        """Weights of one structure."""
        return sum(linear.weight.numel() for linear in self.linears) // self.structures

    def per_structure(self, columns: Tensor) -> Tensor:
        """Sums of a value per consumer column (m,) over each structure's columns."""
        return columns.reshape(self.structures, -1).sum(1)

    def columns(self, kept: Tensor) -> Tensor:
        """Indices of the consumer's columns that belong to the kept structures."""
        return _expand(kept, self.consumer.in_features // self.structures)

    def remove_all_but(
        self, kept: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Slice the linear layers; the site is used up.

        Args:
            kept: Structures that stay, (k,) int64, ascending.
            weight: New weight of the consumer's kept columns; the old one's if None.
            bias: New bias of the consumer.
        """
        for linear in self.producers:
            rows = _expand(kept, linear.out_features // self.structures)
            linear.weight = _frozen(linear.weight.detach()[rows])
            linear.out_features = len(rows)
        columns = self.columns(kept)
        if weight is None:
            weight = self.consumer.weight.detach()[:, columns]
        self.consumer.weight = _frozen(weight.to(self.consumer.weight.dtype))
        self.consumer.in_features = len(columns)
        if bias is not None:
            self.consumer.bias = _frozen(bias.to(self.consumer.weight.dtype))


def layer_sites(model: Any, layer: int, scope: Scope) -> list[Site]:
    """Sites of one decoder layer, in the order in which they run."""
    attention, ffn = model.model.layers[layer].self_attn, model.model.layers[layer].mlp
    groups = attention.k_proj.out_features // attention.head_dim
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    channels = Site(
        layer, "ffn", (ffn.gate_proj, ffn.up_proj), ffn.down_proj, ffn.down_proj.in_features
    )
    if scope == "ffn":
        return [channels]
    return [Site(layer, "attention", projections, attention.o_proj, groups), channels]


def model_sites(model: Any, scope: Scope) -> list[Site]:
    """Sites of all decoder layers."""
    return [
        site
        for layer in range(len(model.model.layers))
        for site in layer_sites(model, layer, scope)
    ]


def site_parameters(model: Any, scope: Scope) -> int:
    """Weights of all structures that are there."""
    return sum(site.parameters * site.structures for site in model_sites(model, scope))


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=False)


def _expand(structures: Tensor, each: int) -> Tensor:
    """Indices of rows or columns, `each` per structure."""
    return (structures[:, None] * each + torch.arange(each)).flatten()
