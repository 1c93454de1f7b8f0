"""What is fuzzed: everything that reads a stranger's model before any weight is touched.

header    the safetensors header of one file
files     a whole checkpoint: config.json, the index of shards, the headers, against each other
config    config.json of every family
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from strucprune_core.checkpoint.header import DTYPE_BYTES, Header, parse_header
from strucprune_core.checkpoint.hostile_json import parse_object
from strucprune_core.errors import ObjectNotFound, StrucPruneError
from strucprune_core.models.families import parse_config
from strucprune_core.models.tensors import expected_tensors
from strucprune_core.plan.inspection import inspect_model
from strucprune_core.storage.keys import check_key
from strucprune_core.storage.store import ObjectInfo, Store, Tick, ignore_bytes
from tests.core.models.hub_configs import HUB
from tests.fuzz.mutations import dumped, mutate_bytes, mutate_json

Outcome = str
"""The code of the error that an input was refused with, or "accepted"."""

Target = Callable[[random.Random], Outcome]
_CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}


class ReadOutside(AssertionError):
    """Bytes were asked for that are not the file's."""


class MemoryStore:
    """A store that lets nobody read outside of its objects."""

    uri = "memory://"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        return ObjectInfo(key, len(self._objects[key])) if key in self._objects else None

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytearray:
        check_key(key)
        if key not in self._objects:
            raise ObjectNotFound(f"{key} does not exist")
        return bytearray(read_within(self._objects[key], start, length))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for key, data in self._objects.items():
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), "1")

    def check_writable(self) -> None:
        raise NotImplementedError

    def remove_unfinished(self, keys: Collection[str]) -> None:
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def put_if_absent(self, key: str, data: bytes) -> bool:
        raise NotImplementedError

    def upload(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        raise NotImplementedError

    def download(self, key: str, path: Path, tick: Tick = ignore_bytes) -> None:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def child(self, prefix: str) -> Store:
        raise NotImplementedError

    def local_path(self, key: str) -> Path | None:
        return None


def read_within(data: bytes, start: int, length: int | None) -> bytes:
    """A range of bytes; anything outside is a finding."""
    end = len(data) if length is None else start + length
    if not 0 <= start <= end <= len(data):
        raise ReadOutside(f"bytes {start} to {end} of {len(data)}")
    return data[start:end]


def file_of(tensors: dict[str, tuple[int, ...]]) -> tuple[dict[str, object], int]:
    """A header, and the bytes of data that it describes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + math.prod(shape) * DTYPE_BYTES["BF16"]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    return header, end


_TENSORS = {name: tuple(shape) for name, shape in expected_tensors(parse_config(_CONFIG)).items()}
_NAMES = list(_TENSORS)
_SHARDS = {
    f"model-0000{number}-of-00002.safetensors": {name: _TENSORS[name] for name in part}
    for number, part in enumerate((_NAMES[: len(_NAMES) // 2], _NAMES[len(_NAMES) // 2 :]), 1)
}


def _written(header: bytes, data_bytes: int, length: int | None = None) -> bytes:
    claimed = len(header) if length is None else length
    return (claimed % 2**64).to_bytes(8, "little") + header + bytes(data_bytes)


def _spoilt_file(tensors: dict[str, tuple[int, ...]], random_: random.Random) -> bytes:
    header, size = file_of(tensors)
    kind = random_.randrange(6)
    if kind <= 2:
        return _written(dumped(mutate_json(header, random_, random_.randrange(1, 4))), size)
    if kind == 3:
        return _written(mutate_bytes(dumped(header), random_), size)
    if kind == 4:
        length = random_.choice([0, 1, 7, len(dumped(header)) + 1, 2**24, 2**24 + 1, 2**63, -1])
        return _written(dumped(header), size, length)
    return mutate_bytes(_written(dumped(header), size), random_)


def _check(header: Header, data: bytes) -> None:
    """What was accepted may be read: every tensor lies inside of its file."""
    for info in header.tensors.values():
        read_within(data, info.start, info.end - info.start)
        assert info.size_bytes == info.parameters * DTYPE_BYTES[info.dtype]


def header(random_: random.Random) -> Outcome:
    """One safetensors file."""
    some = dict(random_.sample(sorted(_TENSORS.items()), random_.randrange(0, 6)))
    data = _spoilt_file(some, random_)
    found = parse_header(
        lambda start, length: read_within(data, start, length), "x.safetensors", len(data)
    )
    _check(found, data)
    return "accepted"


def files(random_: random.Random) -> Outcome:
    """A whole checkpoint, in which something is wrong."""
    where = {name: shard for shard, part in _SHARDS.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    objects = {"config.json": dumped(_CONFIG), "tokenizer.json": b"{}"}
    objects["model.safetensors.index.json"] = dumped(index)
    for name, tensors in _SHARDS.items():
        found, size = file_of(tensors)
        objects[name] = _written(dumped(found), size)
    spoil = random_.choice(["config", "index", "index", "shard", "shard", "name", "bytes"])
    if spoil == "config":
        objects["config.json"] = dumped(mutate_json(_CONFIG, random_, random_.randrange(1, 4)))
    elif spoil == "index":
        spoilt = mutate_json(index, random_, random_.randrange(1, 4))
        objects["model.safetensors.index.json"] = dumped(spoilt)
    elif spoil == "shard":
        name = random_.choice(list(_SHARDS))
        objects[name] = _spoilt_file(_SHARDS[name], random_)
    elif spoil == "name":
        objects.pop(random_.choice(list(objects)))
    else:
        name = random_.choice(list(objects))
        objects[name] = mutate_bytes(objects[name], random_)
    facts = inspect_model(MemoryStore(objects))
    for info in facts.index.tensors.values():
        read_within(objects[info.file], info.start, info.size_bytes)
    return "accepted"


_CONFIGS = [json.loads(json.dumps(config)) for config, _ in HUB.values()]


def config(random_: random.Random) -> Outcome:
    """config.json of some family."""
    good = random_.choice(_CONFIGS)
    data = dumped(mutate_json(good, random_, random_.randrange(1, 5)))
    if random_.random() < 0.1:
        data = mutate_bytes(data, random_)
    parsed = parse_config(parse_object(data, "config.json", max_depth=16))
    assert 0 < parsed.layers <= 1024
    for shape in expected_tensors(parsed).values():
        assert all(0 < size <= 2**24 * 16 for size in shape)
    return "accepted"


TARGETS: dict[str, Target] = {"header": header, "files": files, "config": config}


def outcome_of(target: Target, seed: str) -> Outcome:
    """How one input ends: refused by a typed error, or accepted. Anything else is raised."""
    try:
        return target(random.Random(seed))
    except StrucPruneError as error:
        str(error).encode()  # a message that cannot be written is a crash in the log
        return error.code
