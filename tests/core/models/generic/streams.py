"""Tiny models of generic architectures as streams, their weights in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from strucprune_core.models.generic.architectures import architecture
from strucprune_core.models.generic.describe import describe
from strucprune_core.models.generic.expert_table import expert_architecture
from strucprune_core.models.streaming import ModelStream, open_stream
from tests.coverage.examine import Tensors
from tests.coverage.patterns import as_stored
from tests.coverage.tiny import tiny_config, tiny_model


class CountedTensors(Tensors):
    """Tensors that are copied whenever they are read, and counted."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self.reads: Counter[str] = Counter()

    def tensor(
        self, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """A whole tensor."""
        self.reads[name] += 1
        return super().tensor(name, device=device, dtype=dtype).clone()

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of a tensor, counted as `name[start]`."""
        self.reads[f"{name}[{start}]"] += 1
        return super().rows(name, start, stop, device=device, dtype=dtype).clone()


def tiny_stream(model_type: str, **changes: Any) -> tuple[ModelStream, CountedTensors, Any]:
    """(stream, its tensors, transformers' model) of an architecture."""
    config = tiny_config(model_type, **changes)
    model = tiny_model(config)
    found, experts = architecture(model_type), expert_architecture(model_type)
    if found is None:
        assert experts is not None
        found = experts.architecture
    tensors = as_stored(model).tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    source = CountedTensors(tensors)
    pattern = None if experts is None else experts.pattern
    described = describe(config.to_dict(), shapes, found, pattern)
    return open_stream(described, source, torch.device("cpu")), source, model
