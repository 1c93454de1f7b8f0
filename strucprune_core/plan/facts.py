"""What is known of a model before any heavy work. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that passed inspection: the layout of its files and its configuration."""

    index: CheckpointIndex
    config: ModelConfig

    @property
    def parameters(self) -> int:
        """Of the model, without what drafts further tokens."""
        tensors = self.index.tensors
        return sum(tensors[name].parameters for name in expected_tensors(self.config))
