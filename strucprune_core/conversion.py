"""`strucprune convert`: a pickled checkpoint to safetensors, tensor by tensor.

The output must be empty. `config.json` is written last: no reader takes files without it for a
model, so a conversion that died leaves nothing that could be mistaken for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from strucprune_core.calibration.text_process import converted_tokenizer
from strucprune_core.calibration.tokenizer_config import TOKENIZER, tokenizer_source
from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX, SINGLE_FILE
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.checkpoint.index import (
    MAX_CONFIG_BYTES,
    MAX_OBJECTS,
    MAX_SIDE_FILE_BYTES,
    SIDE_FILES,
    open_checkpoint,
)
from strucprune_core.checkpoint.other_formats import PICKLED_MODEL, not_convertible, nothing_there
from strucprune_core.checkpoint.pickled import PickledTensors, dtype_name, pickled_files
from strucprune_core.checkpoint.terms import terms_of
from strucprune_core.checkpoint.writer import PlannedTensor, index_json, plan_shards, write_shard
from strucprune_core.errors import (
    InvalidCheckpoint,
    InvalidSpec,
    NumericalFailure,
    StrucPruneError,
    naming_field,
)
from strucprune_core.models.families import parse_config
from strucprune_core.plan.inspection import check_output_usable
from strucprune_core.storage.store import Readable, ReadableStore, Store
from strucprune_core.storage.uri import contains

MAX_SHARD_BYTES = 1 << 30
_MAX_CONFIG_DEPTH = 16
_HEAD = "lm_head.weight"


def convert(
    source: ReadableStore,
    output: Store,
    scratch: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Write a pickled checkpoint as safetensors, with its config, tokenizer and licence files.

    Args:
        source: The pickled model.
        output: Where the safetensors model goes; must be empty.
        scratch: Directory for one shard and, if the source is not local, for its files.
        max_shard_bytes: Size of the output's files.
        tick: Called with the share that is done, in [0, 1].

    Returns:
        What was written.

    Raises:
        InvalidSpec: the output lies in the source.
        InvalidCheckpoint: the source is incomplete, damaged, or asks for more than tensors.
        OutputNotEmpty: the output is not empty.
        StorageError: a store refused or failed.
    """
    if contains(source.uri, output.uri):
        raise InvalidSpec(
            f"{output.uri} lies in {source.uri}", field="DST", remedy="Choose a place outside it."
        )
    with naming_field("SRC"):
        config_bytes, config = _config(source)
        files, weight_map = pickled_files(source)
        sizes = {info.key: info.size_bytes for info in islice(source.list(), MAX_OBJECTS)}
        terms = terms_of(sizes)
    with naming_field("DST"):
        check_output_usable(output)
    with naming_field("SRC"):
        tensors = PickledTensors({name: _local(source, name, scratch) for name in files})
        places, tied = _places(tensors, files, weight_map, tied=_ties(config))
        planned = _planned(tensors, places)
    written: list[str] = []
    with _undone_on_failure(output, written):
        shards = plan_shards(planned, max_shard_bytes)
        total = sum(shard.size_bytes for shard in shards)
        done = 0

        def produce(name: str) -> Tensor:
            nonlocal done
            tensor = tensors.of(places[name])[name]
            done += tensor.numel() * tensor.element_size()
            tick(done / max(1, total))
            return tensor

        for shard in shards:
            path = scratch / "shard.safetensors"
            with _named_as_source():
                write_shard(path, shard, produce)
            written.append(shard.file_name)
            output.upload(shard.file_name, path)
            path.unlink()
        small = {name: bytes(source.read(name)) for name in (*_side_files(source), *terms)}
        tokenizer = _tokenizer(source, small, config)
        if len(shards) > 1:
            small[SHARD_INDEX] = index_json(shards)
        for name, data in {**small, CONFIG: config_bytes}.items():
            written.append(name)
            output.put(name, data)
    index = open_checkpoint(output)
    return {
        "source": source.uri,
        "output": output.uri,
        "tensors": len(index.tensors),
        "tied": tied,
        "bytes": index.total_bytes,
        "files": len(index.file_sizes),
        "digest": index.digest(),
        "tokenizer": tokenizer,
    }


def _config(source: ReadableStore) -> tuple[bytes, dict[str, Any]]:
    for name in (SINGLE_FILE, SHARD_INDEX):
        if source.stat(name) is not None:
            raise InvalidCheckpoint(
                f"{source.uri} holds {name} already", remedy="Use the model as it is."
            )
    info = source.stat(CONFIG)
    if info is None or not any(source.stat(name) is not None for name in PICKLED_MODEL):
        names = tuple(info.key for info in islice(source.list(), MAX_OBJECTS))
        raise nothing_there(source.uri) if not names else not_convertible(source.uri, names)
    if info.size_bytes > MAX_CONFIG_BYTES:
        raise InvalidCheckpoint(
            f"{CONFIG} has {info.size_bytes:,} bytes, over the limit of {MAX_CONFIG_BYTES:,}",
            remedy="A model's configuration is far smaller: check what this file is.",
        )
    data = bytes(source.read(CONFIG, 0, info.size_bytes))
    return data, parse_object(data, CONFIG, max_depth=_MAX_CONFIG_DEPTH)


def _ties(config: dict[str, Any]) -> bool:
    """Whether the head is the embedding: as the config says, else as its family does."""
    stated = config.get("tie_word_embeddings")
    if stated is not None:
        return stated is True
    try:
        return parse_config(config).tie_word_embeddings
    except StrucPruneError:  # A model that cannot be pruned can be converted all the same.
        return False


def _local(source: ReadableStore, name: str, scratch: Path) -> Path:
    """The file on this machine: only files can be mapped."""
    path = source.local_path(name)
    if path is None:
        path = scratch / name
        source.download(name, path)
    return path


def _places(
    tensors: PickledTensors,
    files: tuple[str, ...],
    weight_map: Mapping[str, str] | None,
    *,
    tied: bool,
) -> tuple[dict[str, str], list[str]]:
    """The file of each tensor to be written, and the names that are left out as tied.

    Names that share their memory are one tensor to a model with tied embeddings: like transformers,
    the first of them is written, the head never. Without tying, every name is written.
    """
    places: dict[str, str] = {}
    left_out: list[str] = []
    for file in files:
        stored = tensors.of(file)
        first: dict[tuple[object, ...], str] = {}
        for name in sorted(stored, key=lambda name: name == _HEAD):
            if weight_map is not None and weight_map.get(name) != file:
                continue
            owner = first.setdefault(_memory(stored[name]), name)
            if owner != name and tied:
                left_out.append(name)
            else:
                places[name] = file
    for name in weight_map or ():
        if name not in places and name not in left_out:
            raise InvalidCheckpoint(f"tensor {shown(name)} is not in the file that the index names")
    if not places:
        raise InvalidCheckpoint("the checkpoint holds no tensors")
    return places, left_out


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same numbers at the same place. Empty ones are all apart."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _planned(tensors: PickledTensors, places: Mapping[str, str]) -> list[PlannedTensor]:
    planned = []
    for name, file in places.items():
        tensor = tensors.of(file)[name]
        planned.append(PlannedTensor(name, dtype_name(tensor), tuple(tensor.shape)))
    return planned


def _side_files(source: Readable) -> list[str]:
    names = []
    for name in SIDE_FILES:
        info = source.stat(name)
        if info is not None:
            if info.size_bytes > MAX_SIDE_FILE_BYTES:
                raise InvalidCheckpoint(
                    f"{name} is larger than {MAX_SIDE_FILE_BYTES} bytes",
                    remedy="No model has such a large one: check what it is.",
                )
            names.append(name)
    return names


def _tokenizer(source: Readable, small: dict[str, bytes], config: dict[str, Any]) -> str | None:
    """Add a tokenizer.json to the small files if there is none; what holds the tokenizer.

    Where none can be made, the model is converted all the same.
    """
    stored = tokenizer_source(small)
    if stored is None or stored == TOKENIZER:
        return stored
    try:
        small[TOKENIZER] = converted_tokenizer(source, tuple(small), str(config.get("model_type")))
    except InvalidCheckpoint as error:
        return f"{stored}: {error.message}"
    return f"{TOKENIZER}, made of {stored}"


@contextlib.contextmanager
def _named_as_source() -> Iterator[None]:
    """A tensor that is not finite is the source's fault here, not a solve's."""
    try:
        yield
    except NumericalFailure as error:
        raise InvalidCheckpoint(
            error.message, field="SRC", remedy="The model is damaged; copy it again."
        ) from error


@contextlib.contextmanager
def _undone_on_failure(output: Store, written: list[str]) -> Iterator[None]:
    """Empty the output again if writing to it fails, as far as the store permits."""
    try:
        yield
    except BaseException:
        for name in written:
            with contextlib.suppress(StrucPruneError):
                output.delete(name)
        raise
