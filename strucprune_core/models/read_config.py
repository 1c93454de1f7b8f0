"""A checkpoint's `ModelConfig`, from its config.json and the headers of its files. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.index import MAX_HEADERS_BYTES, Allowance, CheckpointIndex
from strucprune_core.errors import InvalidSpec, UnsupportedArchitecture
from strucprune_core.models import fields
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.drafting import drafting_names
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
from strucprune_core.models.generic.expert_table import (
    ExpertArchitecture,
    expert_architecture,
    expert_refusal,
    expert_table,
)
from strucprune_core.models.pruned_shapes import EXPERTS_PREFIX, family_of
from strucprune_core.models.tensors import allowance, with_full_names

# Keys by which classes of transformers count experts.
_EXPERT_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "zero_expert_num",
)
# Tensors that any layer has beside those of its experts, an expert has, and a model has beside
# those of its layers.
_LAYER_TENSORS, _EXPERT_TENSORS, _OTHER_TENSORS = 96, 8, 256
_ENTRY_BYTES, _METADATA_BYTES = 256, 2**20


def read_config(
    index: CheckpointIndex, *, experts: bool = False
) -> tuple[ModelConfig, CheckpointIndex]:
    """The model that files hold, and the files with their tensors named as the whole model does.

    Args:
        index: The files.
        experts: Whether the model is read to remove experts. Then it runs in transformers' own
            modules, whatever its family.

    Raises:
        UnsupportedArchitecture: the model type, or a variant it asks for, cannot be pruned.
        InvalidCheckpoint: config.json and the files contradict each other.
        InvalidSpec: the model's experts cannot be removed, or it has none.
    """
    if experts or _has_experts_alone(index.config) or _has_counts(index.config):
        return _read_with_experts(index)
    if _is_own(index.config):
        config = parse_config(index.config)
        index = with_full_names(config.names, index)
        return _with_drafting(config, index), index
    found = _architecture(index.config).named_as_in(index.tensors)
    index = with_full_names(found.names, index)
    shapes = {name: info.shape for name, info in index.tensors.items()}
    entry = expert_architecture(str(_family(index.config)))
    pattern = None if entry is None else entry.pattern
    return describe(index.config, shapes, found, pattern), index


def _with_drafting(config: ModelConfig, index: CheckpointIndex) -> ModelConfig:
    """A model of a family that is written out, with what drafts further tokens."""
    found = drafting_names(index.tensors, config.names.layer, index.config, {config.layers})
    drafting = tuple((name, index.tensors[name].shape) for name in sorted(found))
    return replace(config, drafting=drafting)


def _has_experts_alone(raw: RawConfig) -> bool:
    """Whether experts are all that can be removed from a model."""
    family = _family(raw)
    if family is None or family in FAMILIES or architecture(family) is not None:
        return False
    return expert_architecture(family) is not None


def _has_counts(raw: RawConfig) -> bool:
    """Whether layers of a model have lost different numbers of experts."""
    return str(raw.get("model_type")).startswith(EXPERTS_PREFIX)


def _read_with_experts(index: CheckpointIndex) -> tuple[ModelConfig, CheckpointIndex]:
    raw = index.config
    found = _expert_architecture(raw)
    # With the channels of dense layers and shared experts, where some are known.
    known = architecture(str(_family(raw))) or found.architecture
    known = known.named_as_in(index.tensors)
    index = with_full_names(known.names, index)
    shapes = {name: info.shape for name, info in index.tensors.items()}
    config = describe(raw, shapes, known, found.pattern)
    counts = [
        block.generic.experts.count
        for block in config.blocks
        if block.generic is not None and block.generic.experts is not None
    ]
    if not counts or max(counts) < 2:
        raise _no_experts("no layer of the model has several experts")
    return config, index


def _expert_architecture(raw: RawConfig) -> ExpertArchitecture:
    """The entry of a model whose experts are to be removed.

    Raises:
        UnsupportedArchitecture: there is no such model type, or no job can have it.
        InvalidSpec: its experts cannot be removed, or it has none.
    """
    model_type, family = raw.get("model_type"), _family(raw)
    found = None if family is None else expert_architecture(family)
    if found is not None and model_type != family and not _has_counts(raw):
        raise _no_experts(
            "the model was pruned before, and its experts have widths that no class of "
            "transformers knows",
            "Remove experts of the dense model first, and prune the result.",
        )
    if found is not None:
        return found
    reason = None if family is None else expert_refusal(family)
    if reason is not None:
        raise _no_experts(f"experts of architecture {shown(family)} cannot be removed: {reason}")
    if not _is_own(raw):
        _architecture(raw)  # Raises for what no job can have.
    raise _no_experts(f"architecture {shown(family)} has no routed experts")


def _no_experts(
    message: str, remedy: str = "Remove other structures: ['ffn_channels']."
) -> InvalidSpec:
    return InvalidSpec(message, field="pruning.structures", remedy=remedy)


# Parts that see or hear may count blocks by other keys, or not at all (Gemma 3n's: 548 tensors).
_UNCOUNTED_PARTS, _UNCOUNTED_TENSORS = 3, 2048


def header_allowance(raw: RawConfig) -> Allowance:
    """What the headers of a model with this config.json may hold.

    Raises:
        UnsupportedArchitecture: the model type, or a variant it asks for, cannot be pruned.
        InvalidCheckpoint: a key is missing or has a value that cannot be.
    """
    if _is_own(raw):
        return allowance(parse_config(raw))
    if _family(raw) not in expert_table()["model_types"]:
        _architecture(raw)
    parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]
    tensors = _OTHER_TENSORS
    uncounted = 0
    for part in parts:  # What sees images has layers of its own.
        layers = _largest(part, fields.LAYER_KEYS, fields.MAX_LAYERS, 0)
        uncounted += layers == 0 and "model_type" in part
        experts = _largest(part, _EXPERT_KEYS, fields.MAX_EXPERTS, 0)
        tensors += layers * (_LAYER_TENSORS + _EXPERT_TENSORS * experts)
    tensors += min(uncounted, _UNCOUNTED_PARTS) * _UNCOUNTED_TENSORS
    return Allowance(tensors, min(MAX_HEADERS_BYTES, tensors * _ENTRY_BYTES + _METADATA_BYTES))


def ties_head(raw: RawConfig) -> bool:
    """Whether config.json says that the head is the embedding."""
    if _is_own(raw):
        return parse_config(raw).tie_word_embeddings
    experts = expert_architecture(str(_family(raw)))
    return says_tied(raw, _architecture(raw) if experts is None else experts.architecture)


def _family(raw: RawConfig) -> str | None:
    model_type = raw.get("model_type")
    return family_of(model_type) if isinstance(model_type, str) else None


def _is_own(raw: RawConfig) -> bool:
    return _family(raw) in FAMILIES and not _has_counts(raw)


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
