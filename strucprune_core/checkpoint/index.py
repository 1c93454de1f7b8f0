"""What a checkpoint holds, from config.json and the safetensors headers alone. No torch.

Opening a model of any size reads a few ranges of bytes; no weight is touched. Pickled weights are
refused, since unpickling runs code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX, SINGLE_FILE
from strucprune_core.checkpoint.header import Header, TensorInfo, parse_header
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.checkpoint.other_formats import not_a_model, nothing_there
from strucprune_core.checkpoint.quantised import (
    DEFAULT_DTYPE,
    as_dtype,
    config_as,
    dequantised,
    quantisation_of,
)
from strucprune_core.checkpoint.terms import terms_of
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.storage.store import ObjectInfo, Readable, ReadableStore
from strucprune_core.storage.versions import version_of

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)

MAX_CONFIG_BYTES = 2**20
MAX_INDEX_BYTES = 16 * 2**20
MAX_SIDE_FILE_BYTES = 256 * 2**20
MAX_OBJECTS = 10_000
# Of all files together, since all are held in memory. Enough for half a million tensors.
MAX_HEADERS_BYTES = 64 * 2**20
MAX_TENSORS = 2**20
# Each costs two requests; models of a trillion parameters have some hundred.
MAX_SHARDS = 4096
_MAX_CONFIG_DEPTH = 16
_MAX_INDEX_DEPTH = 4
_MAX_NAMES_SHOWN = 3
# Copying such a file again would not make it smaller.
_NOT_THIS_FILE = "No model has such a large one: check what it is, or save the model again."
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bounds for a model's headers together, and for its shard index alone.

    Attributes:
        tensors: How many tensors they may describe.
        header_bytes: How long they may be.
    """

    tensors: int = MAX_TENSORS
    header_bytes: int = MAX_HEADERS_BYTES


Allow = Callable[[dict[str, Any]], Allowance]
"""The bounds for a model with this config.json; raises if no model can have it."""


@dataclass(frozen=True, slots=True)
class MergedAdapter:
    """An adapter that is merged into the model while it is read.

    Attributes:
        version: Changes when a file of it is written again.
        rank: r of its configuration.
        alpha: lora_alpha.
        modules: Names of the modules to whose matrices a product is added.
        replaced: Names of the tensors in whose place it has another.
    """

    version: str
    rank: int
    alpha: float
    modules: tuple[str, ...]
    replaced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointIndex:
    """A checkpoint whose headers were read and checked.

    Attributes:
        store: Where it lies.
        config_bytes: config.json, of a quantised model as it is once dequantised.
        config: config.json parsed.
        tensors: Every tensor by name.
        file_sizes: Bytes of each safetensors file by name.
        file_versions: Version of every file that a job reads (see `version_of`), by name.
        header_sha256: SHA-256 (hex) of each file's header by name.
        other_files: Names of the tokenizer's and similar small files that exist.
        terms: Names of its README, licence and notice files (see `terms_of`).
        config_sha256: SHA-256 (hex) of config.json as it is stored.
        quantised: Name of the quantisation that is undone while tensors are read.
        adapter: The adapter that is merged while they are read.
    """

    store: ReadableStore = field(repr=False)
    config_bytes: bytes = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    file_sizes: dict[str, int]
    file_versions: dict[str, str] = field(repr=False)
    header_sha256: dict[str, str] = field(repr=False)
    other_files: tuple[str, ...]
    config_sha256: str
    terms: tuple[str, ...] = ()
    quantised: str | None = None
    adapter: MergedAdapter | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all safetensors files."""
        return sum(self.file_sizes.values())

    @property
    def read_bytes(self) -> int:
        """Bytes that the same files would have with every tensor in the dtype that it is read in.

        Factors that are multiplied in while reading count no more.
        """
        bytes_ = self.total_bytes
        for info in self.tensors.values():
            elsewhere = None if info.form is None else info.form.substitution
            stored = info if elsewhere is None else elsewhere.replaced
            bytes_ += info.read_bytes - stored.size_bytes
            if stored.form is not None and stored.form.factors is not None:
                bytes_ -= stored.form.factors.size_bytes
        return bytes_

    def version(self) -> str:
        """Like `digest`, but it also changes when a file is written again in the same layout.

        What a job has computed belongs to exactly these files: a fine-tuned model in their place
        has the same layout.
        """
        versions = sorted(self.file_versions.items())
        adapter = "" if self.adapter is None else self.adapter.version
        return hashlib.sha256(f"{self.digest()}{versions}{adapter}".encode()).hexdigest()

    def digest(self) -> str:
        """SHA-256 (hex) over config.json and all headers: the identity of the model's layout."""
        digest = hashlib.sha256(bytes.fromhex(self.config_sha256))
        for name in sorted(self.header_sha256):
            digest.update(f"{name}\0{self.file_sizes[name]}\0{self.header_sha256[name]}\n".encode())
        return digest.hexdigest()


def open_checkpoint(
    store: ReadableStore, allow: Allow = lambda config: Allowance()
) -> CheckpointIndex:
    """Read and check the layout of the checkpoint under a store's root.

    Args:
        store: Where it lies.
        allow: Bounds headers and index by config.json, before any of them is parsed: headers of
            empty tensors cost nothing to store, but parsing takes a hundred times their size.

    Raises:
        ObjectNotFound: nothing is stored there.
        InvalidCheckpoint: a file is missing, unsafe, truncated or contradicts another.
        StorageError: the store refused or failed.
    """
    objects = _objects(store)
    sizes = {info.key: info.size_bytes for info in objects}
    other = not_a_model(store.uri, tuple(sizes))
    if other is not None:
        raise other
    config_bytes = _read_bounded(store, CONFIG, sizes, MAX_CONFIG_BYTES)
    config = parse_object(config_bytes, CONFIG, max_depth=_MAX_CONFIG_DEPTH)
    config_sha256 = hashlib.sha256(config_bytes).hexdigest()
    quantisation = quantisation_of(config)
    if quantisation is not None:
        config, config_bytes = config_as(config, DEFAULT_DTYPE)
    allowance = allow(config)
    if SINGLE_FILE in sizes:
        weight_map = None
        files: tuple[str, ...] = (SINGLE_FILE,)
    else:
        weight_map = _weight_map(store, sizes, allowance)
        files = tuple(sorted(set(weight_map.values())))
    _check_only_source(config, sizes)
    headers = _headers(store, files, sizes, allowance)
    tensors = _mapped_tensors(headers, weight_map)
    if quantisation is not None:
        tensors = dequantised(tensors, quantisation)
    terms = terms_of(sizes)
    return CheckpointIndex(
        store=store,
        config_bytes=config_bytes,
        config=config,
        tensors=tensors,
        file_sizes={name: sizes[name] for name in files},
        file_versions={
            # The time counts too: the content may have been another one in between.
            info.key: f"{info.version} {version_of(store, info)}"
            for info in objects
            if info.key in (*files, SHARD_INDEX, *SIDE_FILES, *terms)
        },
        header_sha256={name: header.sha256 for name, header in headers.items()},
        other_files=_side_files(sizes),
        terms=terms,
        config_sha256=config_sha256,
        quantised=None if quantisation is None else quantisation.name,
    )


def read_in(index: CheckpointIndex, dtype: str | None) -> CheckpointIndex:
    """The same model in another dtype (a key of `quantised.OUTPUT_DTYPES`); None: in its own."""
    if dtype is None:
        return index
    config, config_bytes = config_as(index.config, dtype)
    tensors = as_dtype(index.tensors, dtype)
    return replace(index, config=config, config_bytes=config_bytes, tensors=tensors)


def _objects(store: ReadableStore) -> list[ObjectInfo]:
    """All objects; bounded, so that a wrong prefix cannot be listed for hours."""
    objects = list(islice(store.list(), MAX_OBJECTS + 1))
    if not objects:
        raise nothing_there(store.uri)
    if len(objects) > MAX_OBJECTS:
        raise InvalidCheckpoint(
            f"{store.uri} holds more than {MAX_OBJECTS} files",
            remedy="Name the prefix of one model.",
        )
    return objects


def _read_bounded(store: Readable, name: str, sizes: Mapping[str, int], limit_bytes: int) -> bytes:
    if sizes[name] > limit_bytes:
        raise InvalidCheckpoint(
            f"{name} has {sizes[name]:,} bytes, over the limit of {limit_bytes:,}",
            remedy=_NOT_THIS_FILE,
        )
    return bytes(store.read(name, 0, sizes[name]))


def _check_only_source(config: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Refuse files that transformers would load in place of, or on top of, the usual ones."""
    if config.get("transformers_weights") is not None:
        raise InvalidCheckpoint(
            f"transformers_weights of config.json names other files of weights "
            f"({shown(config['transformers_weights'])})",
            remedy=f"Save the weights as {SINGLE_FILE}, and remove the key.",
        )
    if "adapter_config.json" in sizes:
        raise InvalidCheckpoint(
            "there is an adapter_config.json beside the model, whose adapter transformers would "
            "apply to it",
            remedy="Merge the adapter into the model (PEFT's merge_and_unload) and save it alone, "
            "or remove the adapter's files.",
        )


def _weight_map(store: Readable, sizes: Mapping[str, int], allowance: Allowance) -> dict[str, str]:
    """Tensor name -> file name, where every file has a plain name and exists."""
    limit_bytes = min(MAX_INDEX_BYTES, allowance.header_bytes)
    data = _read_bounded(store, SHARD_INDEX, sizes, limit_bytes)
    weight_map = parse_object(data, SHARD_INDEX, max_depth=_MAX_INDEX_DEPTH).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidCheckpoint(f"{SHARD_INDEX} has no weight_map")
    names = set(map(str, weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise InvalidCheckpoint(
            f"{SHARD_INDEX} names {len(names)} files, over the limit of {MAX_SHARDS}",
            remedy="Save the model again in fewer, larger shards (save_pretrained's "
            "max_shard_size).",
        )
    for name in names:
        if not _SHARD_NAME.fullmatch(name):
            raise InvalidCheckpoint(f"{SHARD_INDEX} names the file {shown(name)}, which is unsafe")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InvalidCheckpoint(f"weight_map of {SHARD_INDEX} is not a map of strings")
    _check_shards(set(weight_map.values()), sizes)
    return weight_map


def _check_shards(names: set[str], sizes: Mapping[str, int]) -> None:
    missing = sorted(names - sizes.keys())
    if not missing:
        return
    shown_names = ", ".join(missing[:_MAX_NAMES_SHOWN])
    what = (
        f"the shard {shown_names} is missing"
        if len(missing) == 1
        else f"{len(missing)} of the {len(names)} shards that {SHARD_INDEX} names are missing, "
        f"first {shown_names}"
    )
    raise InvalidCheckpoint(what, remedy="Copy the missing files next to the others.")


def _headers(
    store: Readable, files: tuple[str, ...], sizes: Mapping[str, int], allowance: Allowance
) -> dict[str, Header]:
    """The header of each file. Headers beyond the limit are not read."""
    total = 0

    def read(name: str, start: int, length: int) -> bytearray:
        nonlocal total
        total += length
        if total > allowance.header_bytes:
            raise InvalidCheckpoint(
                f"the safetensors headers together hold more than {allowance.header_bytes} bytes, "
                f"which is more than a model of this {CONFIG} can need",
                remedy=f"Check that the prefix holds one model with its own {CONFIG}.",
            )
        return store.read(name, start, length)

    headers: dict[str, Header] = {}
    left = allowance.tensors
    for name in files:
        headers[name] = parse_header(partial(read, name), name, sizes[name], max_tensors=left)
        left -= len(headers[name].tensors)
    return headers


def _mapped_tensors(
    headers: Mapping[str, Header], weight_map: Mapping[str, str] | None
) -> dict[str, TensorInfo]:
    """All tensors by name. Each that the weight map names must be in the file that it says.

    transformers loads all that the shards hold, so tensors count that the map does not name, and
    none may be there twice.
    """
    tensors: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, info in header.tensors.items():
            if name in tensors:
                raise InvalidCheckpoint(
                    f"tensor {shown(name)} is in two files, {tensors[name].file} and {info.file}",
                    remedy="Copy the model again, or save it again with transformers.",
                )
            tensors[name] = info
    for name, file in (weight_map or {}).items():
        if name not in headers[file].tensors:
            raise InvalidCheckpoint(
                f"{SHARD_INDEX} places tensor {shown(name)} in {file}, which does not hold it"
            )
    return tensors


def _side_files(sizes: Mapping[str, int]) -> tuple[str, ...]:
    present = tuple(name for name in SIDE_FILES if name in sizes)
    for name in present:
        if sizes[name] > MAX_SIDE_FILE_BYTES:
            raise InvalidCheckpoint(
                f"{name} has {sizes[name]:,} bytes, over the limit of {MAX_SIDE_FILE_BYTES:,}",
                remedy=_NOT_THIS_FILE,
            )
    return present
