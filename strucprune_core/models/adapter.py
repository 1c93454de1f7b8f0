"""What pruning needs to know of an architecture; one small file per family implements it.

An adapter holds no weights. Every method takes the tensors of one layer as a dict from *role*
("mlp.down_proj.weight") to tensor, so that whoever calls decides where weights come from and how
long they live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from strucprune_core.models.config import ModelConfig

LayerWeights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """One layer's forward pass.

    Attributes:
        hidden: The layer's output on the residual stream, (batch, length, d).
        activations: Input of the FFN's down projection, (batch, length, f).
    """

    hidden: Tensor
    activations: Tensor


@dataclass(frozen=True, slots=True)
class CoupledTensor:
    """A tensor that loses a slice when an FFN channel goes: its role, and the axis of channels."""

    role: str
    axis: int


class Adapter(Protocol):
    """One architecture family."""

    config: ModelConfig
    embedding: str
    head: str
    final_norm: str
    down_projection: str
    ffn_channel: tuple[CoupledTensor, ...]

    def tensor_name(self, layer: int, role: str) -> str:
        """Checkpoint name of a layer's tensor."""

    def roles(self) -> tuple[str, ...]:
        """Roles of one decoder layer's tensors."""

    def forward_layer(self, hidden: Tensor, weights: LayerWeights) -> LayerTrace:
        """Run one decoder layer on (batch, length, d), causally, positions from 0."""

    def normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """The final norm, before the LM head."""
