"""A LoRA adapter of PEFT, read without trusting it, and merged while the model is read. No torch.

For a matrix W of the model and the adapter's A (r x inputs) and B (outputs x r), the merged matrix
is W + s B A, with s = alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA (`use_rslora`).
The rank is that of A and B (`r`, or what `rank_pattern` says), alpha is `lora_alpha` or what
`alpha_pattern` says of the module. Layers that store W transposed (GPT-2) get the transposed
product, and so do embeddings, whose pair PEFT names `lora_embedding_A` and `lora_embedding_B`.

Tensors that an adapter stores whole take the place of the model's, before anything is added: those
of `modules_to_save`, biases that were trained, and the matrices of embeddings and heads, which PEFT
saves with their pairs.

This is what PEFT's `merge_and_unload` computes. Other kinds of adapters are refused.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from strucprune_core.checkpoint.header import (
    FLOAT_DTYPES,
    LowRank,
    ScaledForm,
    Substitution,
    TensorInfo,
    parse_header,
)
from strucprune_core.checkpoint.hostile_json import parse_object, shown
from strucprune_core.checkpoint.index import CheckpointIndex, MergedAdapter
from strucprune_core.errors import InvalidCheckpoint, ObjectNotFound
from strucprune_core.storage.store import ObjectInfo, ReadableStore
from strucprune_core.storage.versions import version_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
FIELD = "model.adapter_uri"
_MAX_CONFIG_BYTES = 2**20
_MAX_DEPTH = 8
_MAX_RANK = 2**14
_MAX_PATTERN_KEYS = 1024
_MOST = 1e9
_PAIR = re.compile(r"base_model\.model\.(.+)\.lora_(?:(embedding)_([AB])|([AB])\.weight)")
_WHOLE = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer)?\.(weight|bias)")
# Keys of a pattern are regular expressions of a stranger. Of these, no match takes long.
_PATTERN_KEY = re.compile(r"\^?(?:[\w.-]|\\\.){1,512}", re.ASCII)
_MERGE = (
    "Merge the adapter into its base model where both are installed (PEFT's merge_and_unload), "
    "save that, and prune the result."
)
# Of these, some say how training began, and others what it trained, which the tensors show.
_HARMLESS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
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
        "modules_to_save",
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
class Pair:
    """What is added to the matrix of a module: scale * up @ down.

    Attributes:
        down: A.
        up: B.
        scale: s.
        embedding: Whether the module is an embedding, (inputs x outputs).
    """

    down: TensorInfo
    up: TensorInfo
    scale: float
    embedding: bool


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose files were checked.

    Attributes:
        pairs: By module of the model.
        whole: Tensors that take the place of the model's, by the names of those.
        rank: r.
        alpha: lora_alpha.
        transposed: Whether the layers that it was trained in store their matrices transposed.
        store: Where it lies.
        version: Changes when a file of it is written again.
    """

    pairs: Mapping[str, Pair]
    whole: Mapping[str, TensorInfo]
    rank: int
    alpha: float
    transposed: bool
    store: ReadableStore
    version: str

    def summary(self) -> MergedAdapter:
        """What a checkpoint says of it once it is merged."""
        modules, replaced = tuple(self.pairs), tuple(self.whole)
        return MergedAdapter(self.version, self.rank, self.alpha, modules, replaced)


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
        pairs=_pairs(header.tensors.values(), config),
        whole=_whole(header.tensors.values()),
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
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
    rank = config.get("r")
    _check_alpha("lora_alpha", config.get("lora_alpha"))
    _check_alpha_pattern(config.get("alpha_pattern"))
    if type(rank) is not int or not 0 < rank <= _MAX_RANK:
        raise _refused(f"r is {shown(rank)}, not a rank from 1 to {_MAX_RANK}")


def _check_alpha(key: str, alpha: Any) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= _MOST:
        raise _refused(f"{key} is {shown(alpha)}, not a number")


def _check_alpha_pattern(pattern: Any) -> None:
    if pattern is None:
        return
    if not isinstance(pattern, dict) or len(pattern) > _MAX_PATTERN_KEYS:
        raise _refused(f"alpha_pattern is not a map of up to {_MAX_PATTERN_KEYS} numbers")
    for key, alpha in pattern.items():
        if not _PATTERN_KEY.fullmatch(key):
            raise _refused(f"alpha_pattern has the key {shown(key)}, which is not a module's name")
        _check_alpha("alpha_pattern", alpha)


def _alphas(config: Mapping[str, Any]) -> Callable[[str], float]:
    """Alpha by module: that of the first key of `alpha_pattern` that is its name or how it ends.

    PEFT matches in this way (`get_pattern_key`).
    """
    pattern = config.get("alpha_pattern") or {}
    keys = [(re.compile(rf"(.*\.)?({key})$"), float(alpha)) for key, alpha in pattern.items()]
    usual = float(config["lora_alpha"])
    return lambda module: next((alpha for key, alpha in keys if key.match(module)), usual)


def _pairs(tensors: Iterable[TensorInfo], config: Mapping[str, Any]) -> dict[str, Pair]:
    found: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
    for info in tensors:
        match = _PAIR.fullmatch(info.name)
        if match is None:
            continue
        if info.dtype not in FLOAT_DTYPES or len(info.shape) != 2:
            raise _refused(
                f"tensor {shown(info.name)} of dtype {info.dtype} and shape {info.shape} is not a "
                "matrix of floating-point numbers"
            )
        module, embedding = match[1], match[2] is not None
        found.setdefault((module, embedding), {})[match[3] or match[4]] = info
    alpha_of = _alphas(config)
    pairs: dict[str, Pair] = {}
    for (module, embedding), parts in found.items():
        if len(parts) != 2 or module in pairs or parts["A"].shape[0] != parts["B"].shape[1]:
            raise _refused(f"module {shown(module)} has no A and B of one rank")
        rank = parts["A"].shape[0]
        if rank != config["r"] and not config.get("rank_pattern"):
            raise _refused(f"module {shown(module)} has rank {rank}, but r is {config['r']}")
        if not 0 < rank <= _MAX_RANK:
            raise _refused(f"module {shown(module)} has rank {rank}")
        divisor = math.sqrt(rank) if config.get("use_rslora") is True else rank
        scale = alpha_of(module) / divisor
        pairs[module] = Pair(parts["A"], parts["B"], scale, embedding)
    if not pairs:
        raise _refused(f"{ADAPTER_FILE} holds no LoRA matrices")
    return pairs


def _whole(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors that take the place of the model's, by the names of those."""
    whole: dict[str, TensorInfo] = {}
    for info in tensors:
        if _PAIR.fullmatch(info.name):
            continue
        match = _WHOLE.fullmatch(info.name)
        if match is None or "lora_" in info.name:
            raise _refused(
                f"tensor {shown(info.name)} is neither part of a LoRA pair nor a tensor of the "
                "base model"
            )
        name = f"{match[1]}.{match[2]}"
        if name in whole:
            raise _refused(f"tensor {shown(name)} of the base model is stored twice")
        if info.dtype not in FLOAT_DTYPES:
            raise _refused(f"tensor {shown(info.name)} has dtype {info.dtype}")
        whole[name] = info
    return whole


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
    for name, whole in adapter.whole.items():
        info = _changed(tensors, name, tied)
        if info.shape != whole.shape:
            raise _refused(
                f"tensor {shown(whole.name)} has shape {whole.shape}, but the base model's has "
                f"{info.shape}"
            )
        form = ScaledForm(whole.dtype, substitution=Substitution(adapter.store, info))
        tensors[name] = replace(whole, name=name, dtype=info.dtype, form=form)
    for module, pair in adapter.pairs.items():
        name = f"{module}.weight"
        info = _changed(tensors, name, tied)
        turned = _is_turned(module, pair, info, transposed or adapter.transposed)
        form = info.form or ScaledForm(info.dtype)
        low_rank = LowRank(adapter.store, pair.down, pair.up, pair.scale, turned)
        tensors[name] = replace(info, form=replace(form, low_rank=low_rank))
    return replace(index, tensors=tensors, adapter=adapter.summary())


def _changed(tensors: Mapping[str, TensorInfo], name: str, tied: tuple[str, ...]) -> TensorInfo:
    """The model's tensor of this name, which an adapter changes."""
    if name in tied:
        raise _refused(f"tensor {shown(name)} is the embedding and the head, which share it")
    if name not in tensors:
        raise _refused(f"tensor {shown(name)} is not in the base model")
    return tensors[name]


def _is_turned(module: str, pair: Pair, info: TensorInfo, transposed: bool) -> bool:
    """Whether the model stores the transpose of the product."""
    shape = (pair.up.shape[0], pair.down.shape[1])
    allowed = (shape[::-1],) if pair.embedding else (shape, shape[::-1])
    if info.shape not in allowed:
        raise _refused(
            f"module {shown(module)} has a product of shape {shape}, but the base model's tensor "
            f"has {info.shape}"
        )
    if pair.embedding:
        return True
    return transposed if shape[0] == shape[1] else info.shape != shape


def _refused(reason: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(f"the adapter cannot be merged: {reason}", field=FIELD, remedy=_MERGE)
