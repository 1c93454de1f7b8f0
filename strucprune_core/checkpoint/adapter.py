"""A LoRA adapter of PEFT, read without trusting it, and merged while the model is read. No torch.

For a matrix W of the model and the adapter's A (r x inputs) and B (outputs x r), the merged matrix
is W + s B A, with s = lora_alpha / r, or lora_alpha / sqrt(r) for rank-stabilised LoRA
(`use_rslora`). Layers that store W transposed (GPT-2) get the transposed product. This is what
PEFT's `merge_and_unload` computes. Other kinds of adapters are refused.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from strucprune_core.checkpoint.header import (
    FLOAT_DTYPES,
    LowRank,
    ScaledForm,
    TensorInfo,
    parse_header,
)
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.errors import InvalidCheckpoint, ObjectNotFound
from strucprune_core.storage.store import ObjectInfo, ReadableStore
from strucprune_core.storage.versions import version_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
FIELD = "model.adapter_uri"
_MAX_CONFIG_BYTES = 2**20
_MAX_DEPTH = 8
_MAX_RANK = 2**14
_MOST = 1e9
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_MERGE = (
    "Merge the adapter into its base model where both are installed (PEFT's merge_and_unload), "
    "save that, and prune the result."
)
# Of these, some say how training began, and others what it trained, which the tensors show.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
_EMPTY: tuple[Any, ...] = (None, False, [], {}, "", "none")
# Other beginnings change the base model: what is trained then belongs to that one.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose files were checked.

    Attributes:
        pairs: A and B by the module of the model that they belong to.
        alpha: lora_alpha.
        stabilised: Whether the product is divided by the root of the rank, not the rank.
        transposed: Whether the layers that it was trained in store their matrices transposed.
        store: Where it lies.
        version: Changes when a file of it is written again.
    """

    pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]
    alpha: float
    stabilised: bool
    transposed: bool
    store: ReadableStore
    version: str


def open_adapter(store: ReadableStore) -> Adapter:
    """Read and check an adapter's configuration and header.

    Raises:
        ObjectNotFound: there is none.
        InvalidCheckpoint: it is malformed, or not of a kind that can be merged here.
        StorageError: the store refused or failed.
    """
    config_info, file = _stat(store, ADAPTER_CONFIG), _stat(store, ADAPTER_FILE)
    if config_info.size_bytes > _MAX_CONFIG_BYTES:
        raise _refused(f"{ADAPTER_CONFIG} is larger than {_MAX_CONFIG_BYTES} bytes")
    data = bytes(store.read(ADAPTER_CONFIG, 0, config_info.size_bytes))
    config = parse_object(data, ADAPTER_CONFIG, max_depth=_MAX_DEPTH)
    _check_kind(config)
    header = parse_header(
        lambda start, length: store.read(ADAPTER_FILE, start, length), ADAPTER_FILE, file.size_bytes
    )
    digest = hashlib.sha256(data + header.sha256.encode())
    digest.update(f"{file.version} {version_of(store, file)}".encode())
    return Adapter(
        pairs=_pairs(header.tensors, config),
        alpha=float(config["lora_alpha"]),
        stabilised=config.get("use_rslora") is True,
        transposed=config.get("fan_in_fan_out") is True,
        store=store,
        version=digest.hexdigest(),
    )


def _stat(store: ReadableStore, name: str) -> ObjectInfo:
    info = store.stat(name)
    if info is None:
        raise ObjectNotFound(
            f"there is no {name} under {store.uri}",
            field=FIELD,
            remedy="Name the directory or prefix of a LoRA adapter that PEFT's save_pretrained "
            "wrote, with safetensors.",
        )
    return info


def _check_kind(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise _refused(f"peft_type {shown(config.get('peft_type'))} is not LORA")
    for key, value in config.items():
        if key not in _HARMLESS and not any(value is each or value == each for each in _EMPTY):
            raise _refused(f"{key} ({shown(value)}) is not merged here")
    beginning = config.get("init_lora_weights")
    if not any(beginning is each or beginning == each for each in _BEGINNINGS):
        raise _refused(
            f"init_lora_weights {shown(beginning)} changes the base model, and is not merged here"
        )
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= _MOST:
        raise _refused(f"lora_alpha is {shown(alpha)}, not a number")
    if type(rank) is not int or not 0 < rank <= _MAX_RANK:
        raise _refused(f"r is {shown(rank)}, not a rank from 1 to {_MAX_RANK}")


def _pairs(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refused(f"tensor {shown(name)} is not part of a LoRA pair of a linear layer")
        if info.dtype not in FLOAT_DTYPES or len(info.shape) != 2:
            raise _refused(
                f"tensor {shown(name)} of dtype {info.dtype} and shape {info.shape} is not a "
                "matrix of floating-point numbers"
            )
        found.setdefault(match[1], {})[match[2]] = info
    pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
    for module, parts in found.items():
        if len(parts) != 2 or parts["A"].shape[0] != parts["B"].shape[1]:
            raise _refused(f"module {shown(module)} has no A and B of one rank")
        rank = parts["A"].shape[0]
        if rank != config["r"] and not config.get("rank_pattern"):
            raise _refused(f"module {shown(module)} has rank {rank}, but r is {config['r']}")
        if not 0 < rank <= _MAX_RANK:
            raise _refused(f"module {shown(module)} has rank {rank}")
        pairs[module] = parts["A"], parts["B"]
    if not pairs:
        raise _refused(f"{ADAPTER_FILE} holds no LoRA matrices")
    return pairs


def merged(
    index: CheckpointIndex, adapter: Adapter, *, tied: tuple[str, ...], transposed: bool
) -> CheckpointIndex:
    """The checkpoint with an adapter merged into its matrices as they are read.

    Args:
        index: The base model.
        adapter: The adapter.
        tied: Tensors that two modules share, so that only one of them may be changed.
        transposed: Whether the model's layers store matrices as (inputs x outputs).

    Raises:
        InvalidCheckpoint: it does not fit the model.
    """
    tensors = dict(index.tensors)
    for module, (down, up) in adapter.pairs.items():
        name = f"{module}.weight"
        info = tensors.get(name)
        if info is None or name in tied:
            why = "shares its matrix" if name in tied else "is not in the base model"
            raise _refused(f"module {shown(module)} {why}")
        shape = (up.shape[0], down.shape[1])
        if info.shape not in (shape, shape[::-1]):
            raise _refused(
                f"module {shown(module)} has a product of shape {shape}, but the base model's "
                f"tensor has {info.shape}"
            )
        square = shape[0] == shape[1]
        turned = (transposed or adapter.transposed) if square else info.shape != shape
        rank = down.shape[0]
        scale = adapter.alpha / (math.sqrt(rank) if adapter.stabilised else rank)
        form = info.form or ScaledForm(info.dtype)
        low_rank = LowRank(adapter.store, down, up, scale, turned)
        tensors[name] = replace(info, form=replace(form, low_rank=low_rank))
    return replace(index, tensors=tensors, adapter=adapter.version)


def _refused(reason: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(f"the adapter cannot be merged: {reason}", field=FIELD, remedy=_MERGE)
