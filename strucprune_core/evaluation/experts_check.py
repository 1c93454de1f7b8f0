"""Checks that experts of a model can be recorded, and that removing some is what it should be.

A model without some experts must compute what the dense one computes when its router avoids them.
That is more than shapes that fit: a router may find experts by dividing, or score them by tensors
that are not known to belong to them. It is tried on layers of the user's own files, in the class of
transformers that will load the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.evaluation.model_check import FIELD, largest, token_difference
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.expert_source import ExpertSource
from strucprune_core.models.experts import Kept, experts_of, routing_of, without_experts
from strucprune_core.models.generic.layer_tensors import with_tensors
from strucprune_core.models.generic.modules import Modules
from strucprune_core.models.generic.routed import NEVER_CHOSEN, ExpertSums, NoRecord
from strucprune_core.models.panels import LayerWeights
from strucprune_core.models.streaming import ModelStream, open_stream
from strucprune_core.models.tensors import layer_tensors, tensor_name

Rows = NDArray[np.float32]

# Largest difference that rounding explains, relative to the layer's largest output (seen: 4e-7).
TOLERANCE = 1e-5


class ExpertsCheck:
    """Tries on single layers of a dense model what happens to its experts.

    Args:
        dense: The model.
        counts: Experts that each layer keeps.
        seed: Of the choice of those that stay here.
        equally: Whether every layer keeps equally many.
    """

    def __init__(
        self, dense: ModelStream, counts: Sequence[int], seed: int, *, equally: bool = True
    ) -> None:
        if dense.modules is None:
            raise TypeError("not a generic model")
        self._dense, self._modules = dense, dense.modules
        self._kept = _some_experts(dense.config, counts, seed)
        self._cut = open_stream(
            without_experts(dense.config, self._kept, equally=equally),
            ExpertSource(dense.source, dense.config, self._kept),
            dense.device,
            dense.tiles,
            like=dense,
        )

    def __call__(self, layer: int, given: Rows) -> float:
        """Try a layer on an input, (b x n x d); the larger relative difference, 0 without experts.

        Raises:
            UnsupportedArchitecture: it cannot be recorded, or is something else without experts.
        """
        if experts_of(self._dense.config, layer) is None:
            return 0.0
        plain = self._output(self._dense, layer, given)
        return max(
            self._compare(
                layer,
                "its experts one by one compute",
                self._recorded(layer, given),
                "what the layer computes",
                plain,
            ),
            self._compare(
                layer,
                "without some experts it computes",
                self._output(self._cut, layer, given),
                "what it computes where its router avoids them",
                masked_output(
                    self._dense,
                    self._modules,
                    layer,
                    self._dense.layer(layer),
                    self._kept[layer],
                    given,
                ),
            ),
        )

    def _recorded(self, layer: int, given: Rows) -> Rows:
        experts = routing_of(self._dense.config).experts
        try:
            with self._modules.recording(layer, ExpertSums(experts)):
                return self._output(self._dense, layer, given)
        except NoRecord as reason:
            raise UnsupportedArchitecture(
                f"experts cannot be removed: {reason}",
                field=FIELD,
                layer=layer,
                remedy="Remove FFN channels instead, where the architecture allows that.",
            ) from None

    def _compare(self, layer: int, what: str, found: Rows, other: str, wanted: Rows) -> float:
        difference = token_difference(found, wanted, max(largest(wanted), 1e-30), routed=True)
        if not difference <= TOLERANCE:  # `not <=`, so that NaN fails too.
            raise UnsupportedArchitecture(
                f"experts cannot be removed: {what} something else than {other} (relative "
                f"difference {difference:.3g}, tolerance {TOLERANCE:g})",
                field=FIELD,
                layer=layer,
                remedy="config.json asks for a variant of the architecture whose experts cannot be "
                "removed. Please report it with that file.",
            )
        return difference

    def _output(self, stream: ModelStream, layer: int, given: Rows) -> Rows:
        output: Rows = stream.to_host(stream.run_layer(layer, stream.layer(layer), given).hidden)
        return output


def masked_output(
    dense: ModelStream,
    modules: Modules,
    layer: int,
    tensors: LayerWeights,
    kept: Sequence[int],
    given: Rows,
) -> Rows:
    """A dense layer's output, (b x n x d), when its router chooses among some experts.

    Args:
        dense: The model.
        modules: Its modules.
        layer: Which layer.
        tensors: Its tensors by name within the layer.
        kept: The experts that can be chosen.
        given: The layer's input, (b x n x d).
    """
    with masked(dense.config, modules, layer, tensors, kept) as weights:
        output: Rows = dense.to_host(dense.run_layer(layer, weights, given).hidden)
    return output


@contextmanager
def masked(
    config: ModelConfig,
    modules: Modules,
    layer: int,
    tensors: LayerWeights,
    kept: Sequence[int],
) -> Iterator[LayerWeights]:
    """Inside, a dense layer's router chooses among some experts: (the tensors that it runs with).

    Args:
        config: The dense model.
        modules: Its modules.
        layer: Which layer.
        tensors: Its tensors by name within the layer.
        kept: The experts that can be chosen.
    """
    experts = experts_of(config, layer)
    assert experts is not None  # noqa: S101 - asked for layers with experts alone
    removed = sorted(set(range(experts.count)) - set(kept))
    filled: dict[str, Tensor] = {}
    routers, shapes = [], layer_tensors(config, layer)
    for name, axis in experts.sliced:
        shape = shapes[name]
        if math.prod(shape) == shape[axis]:  # A bias or the like: one number per expert.
            filled[name] = _filled(tensors[name], axis, removed)
        elif len(shape) == 2 and axis == 0:
            routers.append(tensor_name(config, layer, name))
    with modules.masking(routers, removed):
        yield with_tensors(tensors, filled)


def _filled(values: Tensor, axis: int, removed: Sequence[int]) -> Tensor:
    indices = torch.tensor(removed, dtype=torch.int64, device=values.device)
    return values.index_fill(axis, indices, NEVER_CHOSEN)


def _some_experts(config: ModelConfig, counts: Sequence[int], seed: int) -> Kept:
    """So many experts of each layer, if it has some, equally many of each group, at random."""
    routing = routing_of(config)
    size = routing.experts // routing.groups
    generator = np.random.Generator(np.random.PCG64(seed))

    def chosen(stay: int) -> list[int]:
        return [
            group * size + int(number)
            for group in range(routing.groups)
            for number in sorted(generator.permutation(size)[:stay])
        ]

    return [
        [] if experts_of(config, layer) is None else chosen(counts[layer] // routing.groups)
        for layer in range(config.layers)
    ]
