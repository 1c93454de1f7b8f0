"""GGUF files, written one tensor at a time and read back memory-mapped.

The writer gets all names and shapes first, so that no more than one tensor is ever in memory. The
same model gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from numpy.typing import NDArray
from torch import Tensor

from strucprune_core.errors import InvalidCheckpoint, NumericalFailure
from strucprune_core.export import q8_0
from strucprune_core.export.gguf_layout import (
    REPORT,
    ROPE_FACTORS,
    GgufDtype,
    GgufTensor,
    Value,
    architecture,
    metadata,
    plan_tensors,
    raw_config,
    rope_factors,
)
from strucprune_core.export.gguf_vocabulary import GgufVocabulary
from strucprune_core.models.config import ModelConfig, RopeConfig
from strucprune_core.models.stored_source import StoredSource
from strucprune_core.models.streaming import WeightSource

_TORCH_DTYPES: dict[GgufDtype, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def write_gguf(
    path: Path,
    config: ModelConfig,
    source: WeightSource,
    stored: Callable[[str], str],
    vocabulary: GgufVocabulary,
    name: str,
    tick: Callable[[int, int], None],
    *,
    quantised: bool = False,
) -> None:
    """Write a model as one GGUF file.

    Args:
        path: The file; replaced if it exists.
        config: The model, a llama (see `checks.check_exports`).
        source: Its tensors.
        stored: Their safetensors dtypes by name.
        vocabulary: Its tokenizer.
        name: The model's name in the file.
        tick: Called with tensors (done, total) before each one: safe points to stop at.
        quantised: Whether matrices become Q8_0 (see `gguf_layout.plan_tensors`).

    Raises:
        NumericalFailure: a value is too large for float16.
    """
    tensors = plan_tensors(config, stored, quantised=quantised)
    factors = _rope_factors(config)
    writer = GGUFWriter(path, architecture(config))
    try:
        for key, value in metadata(config, name, tensors).items():
            _add(writer, key, value)
        _add_vocabulary(writer, vocabulary)
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name,
                tensor.shape,
                np.dtype(np.float16),
                tensor.size_bytes,
                raw_dtype=GGMLQuantizationType[tensor.dtype],
            )
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, tensor in enumerate(tensors):
            tick(number, len(tensors))
            values = permute_rotary(_in_file(source, tensor), tensor.rotary_heads)
            writer.write_tensor_data(_as_bytes(values))
        if factors is not None:
            writer.write_tensor_data(factors)
    except BaseException:
        writer.close()
        path.unlink(missing_ok=True)  # Half a file must not look like a whole one.
        raise
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_array(key, value)


def _add_vocabulary(writer: GGUFWriter, vocabulary: GgufVocabulary) -> None:
    splitting = vocabulary.splitting
    writer.add_tokenizer_model(splitting.model)
    writer.add_tokenizer_pre(splitting.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.token_types)
    if splitting.model == "llama":
        writer.add_token_scores(splitting.scores)
    else:
        writer.add_token_merges(splitting.merges)
    for name, number in vocabulary.special_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(splitting.space_first)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _in_file(source: WeightSource, tensor: GgufTensor) -> Tensor:
    """A tensor as the file holds it, rows in the checkpoint's order: numbers, or bytes."""
    if tensor.dtype != "Q8_0":
        return rounded(source, tensor)
    try:
        return q8_0.quantise(source.tensor(tensor.source, dtype=None))
    except NumericalFailure as error:
        raise _not_finite(tensor) from error


def rounded(source: WeightSource, tensor: GgufTensor) -> Tensor:
    """A tensor's values in the 16 or 32 bits of the file, rows in the checkpoint's order.

    Raises:
        NumericalFailure: a value is not finite there: above 65504 in float16.
    """
    values = source.tensor(tensor.source, dtype=None)
    narrow = values.to(_TORCH_DTYPES[tensor.dtype])
    # By the extremes: a mask of all values would be a copy of the tensor's size.
    if not all(torch.isfinite(extreme) for extreme in torch.aminmax(narrow)):
        raise _not_finite(tensor)
    return narrow


def _not_finite(tensor: GgufTensor) -> NumericalFailure:
    return NumericalFailure(
        f"tensor '{tensor.source}' has values that are not finite in {tensor.dtype}",
        field="pruning.exports",
        remedy="Leave the exports for llama.cpp out, or save the model in bfloat16 for 'gguf'.",
    )


def permute_rotary(values: Tensor, heads: int) -> Tensor:
    """Rows of every head from (halves) to (pairs); `heads` 0 leaves them."""
    if not heads:
        return values
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def undo_rotary(values: Tensor, heads: int) -> Tensor:
    """Rows of every head from (pairs) to (halves); `heads` 0 leaves them."""
    if not heads:
        return values
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _as_bytes(values: Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = values.contiguous().reshape(-1).view(torch.uint8).numpy()
    return array


def _rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    factors = rope_factors(config.blocks[0].rope or RopeConfig(), config.rotary_dims)
    return None if factors is None else np.array(factors, dtype=np.float32)


class RoundedSource(StoredSource):
    """Values as a GGUF file holds them, computed from another source."""

    def __init__(self, source: WeightSource, tensors: Iterable[GgufTensor]) -> None:
        self._source = source
        self._tensors = {tensor.source: tensor for tensor in tensors}

    def stored(self, name: str) -> Tensor:
        """A whole tensor, rounded; what is quantised as it is read again, in float32."""
        tensor = self._tensors[name]
        values = _in_file(self._source, tensor)
        return q8_0.dequantise(values) if tensor.dtype == "Q8_0" else values

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of it."""
        values = self._source.rows(name, start, stop, dtype=None)
        dtype = self._tensors[name].dtype
        if dtype == "Q8_0":
            return q8_0.dequantise(q8_0.quantise(values))
        return values.to(_TORCH_DTYPES[dtype])


class GgufFile(StoredSource):
    """A GGUF file of a llama under the names of its checkpoint, memory-mapped."""

    def __init__(self, path: Path, expected: ModelConfig) -> None:
        """Read the header.

        Args:
            path: The file.
            expected: The model it should hold; only its rotary scaling is taken from here.

        Raises:
            InvalidCheckpoint: metadata is missing, or the rotary factors are others.
        """
        self._reader = GGUFReader(path)
        self._stored = {tensor.name: tensor for tensor in self._reader.tensors}
        rope = expected.blocks[0].rope or RopeConfig()
        self.config = raw_config(self.field, set(self._stored), rope)
        """The file's metadata as a config.json of layout `per_layer`."""
        factors = _rope_factors(expected)
        stored = self._stored.get(ROPE_FACTORS)
        none = stored is None and factors is None
        both = stored is not None and factors is not None and np.array_equal(stored.data, factors)
        if not (none or both):
            raise InvalidCheckpoint(
                f"{ROPE_FACTORS} of the GGUF file is not the model's", remedy=REPORT
            )
        self._tensors: dict[str, GgufTensor] = {}

    def field(self, key: str) -> Any:
        """A metadata value, None if there is none."""
        entry = self._reader.get_field(key)
        return None if entry is None else entry.contents()

    def describe(self, config: ModelConfig) -> set[str]:
        """Names in the checkpoint of the file's tensors.

        Args:
            config: `self.config`, parsed.

        Raises:
            InvalidCheckpoint: a tensor is unknown.
        """
        planned = plan_tensors(config, lambda name: "F16")
        by_name = {tensor.name: tensor for tensor in planned}
        names = set(self._stored) - {ROPE_FACTORS}
        if unknown := sorted(names - set(by_name)):
            raise InvalidCheckpoint(
                f"the GGUF file has unknown tensors: {unknown[:3]}", remedy=REPORT
            )
        self._tensors = {by_name[name].source: by_name[name] for name in names}
        return set(self._tensors)

    def stored(self, name: str) -> Tensor:
        """A whole tensor, rows in the checkpoint's order."""
        tensor = self._tensors[name]
        return undo_rotary(self._values(tensor, slice(None)), tensor.rotary_heads)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, in the checkpoint's order."""
        tensor = self._tensors[name]
        if tensor.rotary_heads:
            return self.stored(name)[start:stop]
        return self._values(tensor, slice(start, stop))

    def _values(self, tensor: GgufTensor, rows: slice) -> Tensor:
        """Rows in the file's order, copied out of the map."""
        stored = self._stored[tensor.name]
        values = torch.from_numpy(np.array(stored.data[rows]))
        if stored.tensor_type == GGMLQuantizationType.BF16:  # NumPy has no bfloat16: rows of bytes.
            values = values.view(torch.bfloat16)
        if stored.tensor_type == GGMLQuantizationType.Q8_0:
            values = q8_0.dequantise(values)
        return values
