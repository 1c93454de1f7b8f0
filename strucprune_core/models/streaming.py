"""A model read in pieces: one decoder layer, a part of one, or a tile of the vocabulary at a time.

Weights come from a `WeightSource`: a checkpoint's reader, or one in which pruned tensors that exist
only in memory replace those of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.method.linalg.transfers import Transfers
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.decoder import Decoder, LayerTrace, SiteInput
from strucprune_core.models.experts import expert_matrices
from strucprune_core.models.generic.layer_tensors import ExpertwiseLayer, LayerTensors
from strucprune_core.models.layers_ahead import Alive, W, in_turn
from strucprune_core.models.panels import LayerWeights, StreamedLayer
from strucprune_core.models.precision import is_operand
from strucprune_core.models.structures import SiteKind
from strucprune_core.models.tensors import layer_tensors, tensor_name
from strucprune_core.models.tiles import Tiles
from strucprune_core.scratch.arrays import temporary_array

if TYPE_CHECKING:
    from strucprune_core.models.generic.modules import Modules


Hidden = NDArray[np.float32] | Tensor
"""Hidden states: in host memory or scratch, or on the device."""

Where = slice | tuple[NDArray[np.int64], ...]
"""Sequences, or tokens by their places on each axis."""


class WeightSource(Protocol):
    """Tensors by checkpoint name."""

    def tensor(
        self, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = ...
    ) -> Tensor:
        """A whole tensor."""

    def rows(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = ...,
    ) -> Tensor:
        """Rows [start, stop) of a tensor's first dimension."""


@dataclass(frozen=True, slots=True)
class ModelStream:
    """A model's shape, its weights, and the device that computes with them.

    Attributes:
        config: The shape.
        source: Tensors are read from here.
        device: They are used here.
        tiles: How much of the model is resident at a time.
        modules: transformers' own modules, for a generic model (see `models.generic`).
        dtype: Of the operands of matrix products in layers, and so of matrices on the device:
            float32 or bfloat16. Everything else is float32: vectors, routers, hidden states between
            layers, and what is outside the layers.
        transfers: Counts what crosses between host and device.
        stored_bytes: Of a weight in the model's files. So it crosses, and is converted there.
    """

    config: ModelConfig
    source: WeightSource
    device: torch.device
    tiles: Tiles = field(default_factory=Tiles)
    modules: Modules | None = None
    transfers: Transfers = field(default_factory=Transfers)
    dtype: torch.dtype = torch.float32
    stored_bytes: int = 4

    @property
    def in_float32(self) -> ModelStream:
        """The same model, of which everything is computed in float32."""
        return replace(self, dtype=torch.float32)

    def _dtype_of(self, index: int, role: str, shape: tuple[int, ...]) -> torch.dtype:
        """What a tensor of a layer is on the device."""
        return self.dtype if is_operand(self.config, index, role, shape) else torch.float32

    def layer(self, index: int) -> LayerWeights:
        """One decoder layer's tensors by role, on the device: resident if tiles allow."""
        experts = expert_matrices(self.config, index) if self.tiles.expert_by_expert else None
        if self.tiles.weight_rows is None and experts is None:
            return self.whole_layer(index)

        shapes = layer_tensors(self.config, index)

        def read(role: str, rows: tuple[int, int] | None) -> Tensor:
            name = tensor_name(self.config, index, role)
            dtype = self._dtype_of(index, role, shapes[role])
            return self._whole(name, dtype) if rows is None else self._some(name, rows, dtype)

        if experts is not None:
            return ExpertwiseLayer(shapes, experts, read)
        assert self.tiles.weight_rows is not None  # noqa: S101 - else the layer is whole
        return StreamedLayer(shapes, read, self.tiles.weight_rows)

    def layers(self, order: Iterable[int]) -> Iterator[tuple[int, LayerWeights]]:
        """(index, `layer(index)`) in order; if tiles allow, the next one is read meanwhile.

        Drop a layer's tensors before you go on, or three layers are resident at a time. Errors of
        reading a layer are raised when it is its turn.
        """
        if self.tiles.whole_layers:
            yield from self.in_turn(order, self.whole_layer)
            return
        for index in order:
            yield index, self.layer(index)

    def in_turn(
        self, order: Iterable[int], read: Callable[[int, Alive], W]
    ) -> Iterator[tuple[int, W]]:
        """(index, `read(index, …)`) in order, as `layers`; with `whole_layer` for gradients.

        `read` may run in another thread. It makes tensors on the device, and calls what it is given
        before each.
        """
        if self.tiles.reads_ahead:
            yield from in_turn(order, read, self.device)
            return
        for index in order:
            yield index, read(index, lambda: None)

    def whole_layer(self, index: int, alive: Alive = lambda: None) -> dict[str, Tensor]:
        """The same with every tensor resident, to compute gradients.

        `alive` is called before each tensor; it may raise.
        """
        tensors = LayerTensors()
        for role, shape in layer_tensors(self.config, index).items():
            alive()
            name = tensor_name(self.config, index, role)
            tensors[role] = self._whole(name, self._dtype_of(index, role, shape))
        return tensors

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, float32, on the device."""
        return self._whole(name, torch.float32)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, float32, on the device."""
        return self._some(name, (start, stop), torch.float32)

    def _whole(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._sent(self.source.tensor(name, device=self.device, dtype=dtype))

    def _some(self, name: str, rows: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return self._sent(self.source.rows(name, *rows, device=self.device, dtype=dtype))

    def _sent(self, tensor: Tensor) -> Tensor:
        self.transfers.count(to_device=tensor.numel() * self.stored_bytes)
        return tensor

    @torch.inference_mode()
    def run_layer(
        self,
        layer: int,
        weights: LayerWeights,
        hidden: Hidden,
        *,
        record: Collection[SiteKind] = (),
    ) -> LayerTrace:
        """One layer on a micro-batch, (b x n x d), which is loaded if it is on the host.

        `record` names the kinds of sites whose inputs are kept.
        """
        return self.forward_layer(layer, self.load(hidden), weights, record=record)

    def forward_layer(
        self,
        layer: int,
        hidden: Tensor,
        weights: LayerWeights,
        *,
        record: Collection[SiteKind] = (),
    ) -> LayerTrace:
        """One layer on a micro-batch on the device, (b, n, d); autograd may follow it."""
        block = self.config.blocks[layer]
        if block.is_removed:
            return LayerTrace(hidden, {})
        if self.modules is None or block.generic is None:
            decoder = Decoder(self.config, self.dtype)
            return decoder.forward_layer(block, hidden, weights, record=record)
        each = block.generic.feed_forwards if "ffn" in record else ()
        wanted = {feed_forward.name: feed_forward.output for feed_forward in each}
        prefix = tensor_name(self.config, layer, "")
        run = self.modules.run_layer(
            layer, weights, prefix, hidden, inputs_of=wanted, dtype=self.dtype
        )
        tokens = self.modules.tokens_of_rows(hidden)
        inputs = {name: SiteInput(rows, tokens) for name, rows in run.inputs.items()}
        return LayerTrace(run.hidden, inputs)

    def forward_with_outputs(
        self, layer: int, hidden: Tensor, weights: LayerWeights
    ) -> tuple[Tensor, list[tuple[SiteKind, Tensor]]]:
        """A layer's output, and those of its sites before any norm, for autograd.

        The sites of a kind have one joint output, (b, n, d). FFNs of a generic layer have one each,
        with a row for each token, in whatever shape the module has it.
        """
        block = self.config.blocks[layer]
        if self.modules is None or block.generic is None:
            outputs: dict[SiteKind, Tensor] = {}
            decoder = Decoder(self.config, self.dtype)
            trace = decoder.forward_layer(block, hidden, weights, outputs)
            return trace.hidden, list(outputs.items())
        wanted = {each.name: each.output for each in block.generic.feed_forwards}
        prefix = tensor_name(self.config, layer, "")
        run = self.modules.run_layer(
            layer, weights, prefix, hidden, outputs_of=wanted, dtype=self.dtype
        )
        return run.hidden, [("ffn", output) for output in run.outputs.values()]

    def states(self, shape: tuple[int, ...], scratch: Path) -> Hidden:
        """Room for hidden states (sequences x length x d) that pass several layers.

        On the device if the tiles have room for so many tokens, else in a scratch file.
        """
        if shape[0] * shape[1] <= self.tiles.resident_tokens:
            return torch.empty(shape, device=self.device)
        array: NDArray[np.float32] = temporary_array(scratch, shape)
        return array

    def put(self, states: Hidden, where: Where, values: Tensor) -> None:
        """Overwrite a part of hidden states with values on the device."""
        if isinstance(states, Tensor):
            if isinstance(where, slice):
                states[where] = values
            else:
                states[tuple(torch.from_numpy(axis) for axis in where)] = values
        else:
            states[where] = self.to_host(values)

    def to_host(self, tensor: Tensor) -> NDArray[np.float32]:
        """A tensor's numbers on the host; on a CPU not a copy."""
        self.transfers.count(to_host=tensor.nbytes)
        array: NDArray[np.float32] = tensor.cpu().numpy()
        return array

    def load(self, array: Hidden) -> Tensor:
        """A copy on the device; the same tensor if it is there already."""
        if isinstance(array, Tensor):
            return array
        self.transfers.count(to_device=array.nbytes)
        # torch warns about arrays that are not writeable, though this one is only read.
        source = array if array.flags.writeable else np.array(array)
        target = torch.empty(array.shape, device=self.device)
        return target.copy_(torch.from_numpy(np.asarray(source)))

    def tiles_of(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a vocabulary matrix (V x d), a tile at a time."""
        vocabulary, step = self.config.vocab_size, self.tiles.vocabulary_rows
        for start in range(0, vocabulary, step):
            stop = min(start + step, vocabulary)
            yield start, self.rows(name, start, stop)


def open_stream(
    config: ModelConfig,
    source: WeightSource,
    device: torch.device,
    tiles: Tiles | None = None,
    like: ModelStream | None = None,
    dtype: torch.dtype = torch.float32,
    transfers: Transfers | None = None,
    stored_bytes: int = 4,
) -> ModelStream:
    """A model whose weights pass a device.

    Args:
        config: Its shape.
        source: Where its tensors are read from.
        device: Where they are used.
        tiles: How much of it is resident at a time.
        like: The same model in other widths, whose modules are used if they are the same.
        dtype: Of the operands of matrix products in layers.
        transfers: Counts what crosses between host and device.
        stored_bytes: Of a weight in the model's files.
    """
    stream = ModelStream(
        config,
        source,
        device,
        tiles or Tiles(),
        None,
        transfers or Transfers(),
        dtype,
        stored_bytes,
    )
    if config.generic is None:
        return stream
    if like is not None and _same_modules(like.config, config):
        return replace(stream, modules=like.modules)
    # transformers takes seconds and 100 MB to import: only here.
    from strucprune_core.models.generic.meta_parameters import skeleton
    from strucprune_core.models.generic.modules import Modules, dense_model

    raw = json.loads(config.generic.config_json)
    modules = Modules(
        skeleton(lambda: dense_model(raw), device),
        config.generic,
        stream.tensor,
        {config.names.embedding, config.names.head},
        device,
    )
    return replace(stream, modules=modules)


def _same_modules(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether both run in the same modules: a model with fewer experts has others."""
    routings = [each.generic and each.generic.routing for each in (one, other)]
    return routings[0] == routings[1]
