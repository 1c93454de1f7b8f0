"""Models whose headers describe very many empty tensors: cheap to store, dear to look at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strucprune_core.checkpoint.file_names import CONFIG, SHARD_INDEX, SINGLE_FILE

_ENTRY = '"t%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
_ENTRY_BYTES = len(_ENTRY % 0) + 1
# A config that such headers might belong to.
MANY_EXPERTS: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_hidden_layers": 60,
    "moe_intermediate_size": 16,
    "head_dim": 16,
}


def make_hostile_model(
    directory: Path, template: Path, *, shards: int, header_bytes: int, **config: Any
) -> Path:
    """A model of some shards with headers of about so many bytes each.

    Args:
        directory: Created.
        template: A real model, whose other files and config are taken.
        shards: How many.
        header_bytes: Of each.
        config: What its config.json has else.
    """
    shutil.copytree(template, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        count = header_bytes // _ENTRY_BYTES
        header = f"{{{','.join(_entries(number * count, count))}}}".encode()
        (directory / name).write_bytes(len(header).to_bytes(8, "little") + header)
        weight_map[f"t{number * count:07d}"] = name
    (directory / SHARD_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert not (directory / SINGLE_FILE).exists()
    return directory


def _entries(first: int, count: int) -> Iterator[str]:
    return (_ENTRY % number for number in range(first, first + count))
