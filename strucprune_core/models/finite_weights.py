"""Reads every tensor of a model once and refuses values that are not finite."""

from __future__ import annotations

from collections.abc import Callable

from strucprune_core.checkpoint.finite import check_finite_tensor
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.tensors import expected_tensors, layer_tensors, tensor_name


def check_finite_weights(
    reader: TensorReader, config: ModelConfig, tick: Callable[[int, int], None]
) -> int:
    """Read every tensor that the model uses; how many there are.

    Args:
        reader: The checkpoint.
        config: The model.
        tick: Called with tensors (done, total) after each piece: safe points to stop at.

    Raises:
        InvalidCheckpoint: a value is not finite; names the tensor, its file and its layer.
        StorageError: the store refused or failed.
    """
    infos = [reader.info(name) for name in expected_tensors(config)]
    infos.sort(key=lambda info: (info.file, info.start))  # In file order, for reading ahead.
    layers = {
        tensor_name(config, layer, role): layer
        for layer in range(config.layers)
        for role in layer_tensors(config, layer)
    }
    for number, info in enumerate(infos):

        def piece_done(done: int = number) -> None:
            tick(done, len(infos))

        check_finite_tensor(reader, info.name, piece_done, layers.get(info.name))
    return len(infos)
