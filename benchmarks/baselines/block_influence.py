"""ShortGPT: whole layers go whose output is most like their input.

    BI_i = 1 - mean over tokens of x_i . x_{i+1} / (|x_i| |x_{i+1}|),    x_i: input of layer i

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv:2403.03853, equation 1. All scores come from the dense model, and the lowest go at once. A
layer's attention goes with its FFN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.baselines.statistics import embedded, run_layer


def influence(entering: Tensor, leaving: Tensor) -> float:
    """BI of a layer, from its input and output, (... x d)."""
    similarity = nn.functional.cosine_similarity(entering.double(), leaving.double(), dim=-1)
    return 1.0 - float(similarity.mean())


@torch.no_grad()
def influences(model: Any, windows: NDArray[np.int32]) -> Iterator[float]:
    """BI of each layer of the dense model."""
    hidden = embedded(model, windows)
    for layer in range(len(model.model.layers)):
        leaving = run_layer(model, layer, hidden, {})
        yield influence(hidden, leaving)
        hidden = leaving


def prune(model: Any, found: list[float], sparsity: float) -> None:
    """Remove the share of layers that is nearest to the sparsity, at least one stays."""
    layers = model.model.layers
    count = min(round(sparsity * len(layers)), len(layers) - 1)
    order = sorted(range(len(layers)), key=lambda layer: (found[layer], layer))
    gone = set(order[:count])
    kept = [layer for number, layer in enumerate(layers) if number not in gone]
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
