"""A checkpoint's `ModelConfig`, from its config.json and the headers of its files. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.index import MAX_HEADERS_BYTES, Allowance, CheckpointIndex
from strucprune_core.errors import UnsupportedArchitecture
from strucprune_core.models import fields
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.families import FAMILIES, parse_config
from strucprune_core.models.fields import FIELD, RawConfig
from strucprune_core.models.generic.architectures import (
    Architecture,
    architecture,
    generic_model_types,
    refusal,
    table,
)
from strucprune_core.models.generic.describe import describe, says_tied
from strucprune_core.models.pruned_shapes import PRUNED_PREFIX
from strucprune_core.models.tensors import allowance, with_full_names

# Keys by which classes of transformers count layers and experts.
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth")
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Tensors that any layer has beside those of its experts, an expert has, and a model has beside
# those of its layers.
_LAYER_TENSORS, _EXPERT_TENSORS, _OTHER_TENSORS = 96, 8, 256
_ENTRY_BYTES, _METADATA_BYTES = 256, 2**20


def read_config(index: CheckpointIndex) -> tuple[ModelConfig, CheckpointIndex]:
    """The model that files hold, and the files with their tensors named as the whole model does.

    Raises:
        UnsupportedArchitecture: the model type, or a variant it asks for, cannot be pruned.
        InvalidCheckpoint: config.json and the files contradict each other.
    """
    if _is_own(index.config):
        config = parse_config(index.config)
        return config, with_full_names(config.names, index)
    found = _architecture(index.config).named_as_in(index.tensors)
    index = with_full_names(found.names, index)
    shapes = {name: info.shape for name, info in index.tensors.items()}
    return describe(index.config, shapes, found), index


def header_allowance(raw: RawConfig) -> Allowance:
    """What the headers of a model with this config.json may hold.

    Raises:
        UnsupportedArchitecture: the model type, or a variant it asks for, cannot be pruned.
        InvalidCheckpoint: a key is missing or has a value that cannot be.
    """
    if _is_own(raw):
        return allowance(parse_config(raw))
    _architecture(raw)
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]
    tensors = _OTHER_TENSORS
    for part in parts:  # What sees images has layers of its own.
        layers = _largest(part, _LAYER_KEYS, fields.MAX_LAYERS, 0)
        experts = _largest(part, _EXPERT_KEYS, fields.MAX_EXPERTS, 0)
        tensors += layers * (_LAYER_TENSORS + _EXPERT_TENSORS * experts)
    return Allowance(tensors, min(MAX_HEADERS_BYTES, tensors * _ENTRY_BYTES + _METADATA_BYTES))


def ties_head(raw: RawConfig) -> bool:
    """Whether config.json says that the head is the embedding."""
    if _is_own(raw):
        return parse_config(raw).tie_word_embeddings
    return says_tied(raw, _architecture(raw))


def _family(raw: RawConfig) -> str | None:
    model_type = raw.get("model_type")
    return model_type.removeprefix(PRUNED_PREFIX) if isinstance(model_type, str) else None


def _is_own(raw: RawConfig) -> bool:
    return _family(raw) in FAMILIES


def _architecture(raw: RawConfig) -> Architecture:
    family = _family(raw)
    found = None if family is None else architecture(family)
    if found is not None:
        return found
    reason = None if family is None else refusal(family)
    if reason is not None:
        raise UnsupportedArchitecture(
            f"architecture {shown(family)} cannot be pruned: {reason}",
            field=FIELD,
            remedy="Give a model of another architecture; docs/architectures.md lists them.",
        )
    count = len(FAMILIES) + len(generic_model_types())
    raise UnsupportedArchitecture(
        f"architecture {shown(raw.get('model_type'))} is not supported: transformers "
        f"{table()['transformers']} has no language model of this name",
        field=FIELD,
        remedy=f"Give a model of one of the {count} architectures in docs/architectures.md. Code "
        "that comes with a checkpoint is never run.",
    )


def _largest(raw: Mapping[str, object], keys: tuple[str, ...], limit: int, least: int) -> int:
    found = [raw[key] for key in keys if type(raw.get(key)) is int]
    return min(limit, max([least, *(value for value in found if isinstance(value, int))]))
