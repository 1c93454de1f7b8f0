"""A checkpoint of any architecture of the table, by its config.json and headers. No torch.

Shapes come from the files themselves: what config.json calls them differs from class to class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.models import fields
from strucprune_core.models.config import (
    ChannelSource,
    Experts,
    FeedForward,
    GenericLayer,
    GenericModel,
    LayerConfig,
    LayerNames,
    ModelConfig,
    NormConfig,
)
from strucprune_core.models.drafting import drafting_names
from strucprune_core.models.fields import RawConfig
from strucprune_core.models.foreign_tensors import missing_tensor, other_kind
from strucprune_core.models.generic.architectures import Architecture, ChannelPattern
from strucprune_core.models.generic.expert_table import ExpertPattern
from strucprune_core.models.tensors import is_derived

Shapes = Mapping[str, tuple[int, ...]]

# transformers' modules know these; nothing asks a generic layer for them.
_NO_NAMES = LayerNames(attention_output="", down="", attention_norm="", ffn_norm="")
_MAX_STREAMS = 64
_NO_LIMIT = fields.MAX_POSITIONS
_FUSED = 3  # Dimensions of a tensor that holds a matrix of every expert.
# Keys by which classes of transformers count heads. They are shown; nothing is computed by them.
_HEAD_KEYS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
_KV_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def describe(
    raw: RawConfig,
    shapes: Shapes,
    architecture: Architecture,
    experts: ExpertPattern | None = None,
) -> ModelConfig:
    """The model that files hold.

    Args:
        raw: config.json.
        shapes: Shape of each tensor in the files, by name.
        architecture: What they look like.
        experts: What is an expert's, for a job that removes experts.

    Raises:
        InvalidCheckpoint: a tensor that every model has is missing, or layers are.
        UnsupportedArchitecture: the model is an encoder.
    """
    if architecture.encoder and not fields.boolean(raw, "is_decoder", default=False):
        raise UnsupportedArchitecture(
            "the model is an encoder: config.json does not say is_decoder: true",
            field=fields.FIELD,
            remedy="Give a language model, whose layers see no token that follows.",
        )
    for part in (raw, _decoder(raw)):
        fields.refuse_quantised(part)
        fields.refuse_old_rope_name(part)
    shapes = {name: shape for name, shape in shapes.items() if not is_derived(name)}
    counts = _checked_counts(raw)
    found = drafting_names(shapes, architecture.layer, _decoder(raw), set(counts.values()))
    drafting = tuple((name, shapes[name]) for name in sorted(found))
    shapes = {name: shape for name, shape in shapes.items() if name not in found}
    embedding = shapes.get(architecture.embedding)
    if embedding is None or len(embedding) != 2:
        name = architecture.embedding
        longer = [each for each in shapes if each.endswith(name)]
        raise other_kind([*shapes]) or missing_tensor(name, architecture.head, longer)
    layers, rest = _split(shapes, architecture)
    _check_count(counts, len(layers), architecture)
    tied = says_tied(raw, architecture)
    heads = _count(_decoder(raw), _HEAD_KEYS, 0)
    groups = _count(_decoder(raw), _KV_HEAD_KEYS, heads)
    blocks = [
        replace(_block(tensors, architecture), query_heads=heads, kv_heads=groups)
        for tensors in layers
    ]
    if experts is not None:
        blocks = [_with_experts(block, raw, experts) for block in blocks]
    elif not any(_generic(block).feed_forwards for block in blocks):
        raise InvalidCheckpoint(
            "no layer of the model has an FFN whose channels can be removed",
            remedy="Give the config.json that was saved with the weights.",
        )
    if experts is None:
        hidden = _output_rows(blocks)
    else:
        hidden = experts.number(_decoder(raw), (experts.hidden_key,), embedding[1])
    key = architecture.streams_key
    streams = 1 if key is None else fields.integer(_decoder(raw), key, _MAX_STREAMS)
    return ModelConfig(
        model_type=str(raw["model_type"]),
        family=str(raw["model_type"]).removeprefix("strucprune_"),
        names=architecture.names,
        blocks=tuple(blocks),
        vocab_size=embedding[0],
        hidden_size=streams * hidden,
        embedding_size=embedding[1],
        head_dim=0,
        rotary_dims=0,
        max_position_embeddings=_context(raw, architecture),
        norm=NormConfig("rms", 0.0),
        activation="silu",
        residual="pre_norm",
        tie_word_embeddings=tied,
        qkv_bias=False,
        attention_output_bias=False,
        ffn_bias=False,
        attention_scale=0.0,
        dtype=fields.dtype(raw),
        generic=GenericModel(
            json.dumps(raw, sort_keys=True),
            tuple(sorted((name, shape) for name, shape in rest.items())),
            architecture.layer_returns,
            architecture.keeps_scores,
            (streams, hidden) if architecture.streams_apart else (),
            None if experts is None else experts.routing(_decoder(raw)),
        ),
        drafting=drafting,
    )


def _with_experts(block: LayerConfig, raw: RawConfig, pattern: ExpertPattern) -> LayerConfig:
    """A layer with its experts, if it has some."""
    generic, count = _generic(block), pattern.routing(_decoder(raw)).experts
    shapes = dict(generic.tensors)
    own = tuple(name for name in pattern.own if name.format(0) in shapes)
    sliced = tuple((name, axis) for name, axis in pattern.sliced if name in shapes)
    if not own and all(len(shapes[name]) < _FUSED for name, _ in sliced):
        return block
    numbered = all(
        (name.format(number) in shapes) == (number < count)
        for name in own
        for number in range(count + 1)
    )
    if not numbered or any(shapes[name][axis] < count for name, axis in sliced):
        raise InvalidCheckpoint(
            f"config.json says that a layer has {count} experts ({pattern.count_keys[0]}), but the "
            "files hold another number",
            remedy="Give the config.json that was saved with the weights.",
        )
    return replace(block, generic=replace(generic, experts=Experts(count, own, sliced)))


def says_tied(raw: RawConfig, architecture: Architecture) -> bool:
    """Whether config.json says that the head is the embedding: the whole model's key counts."""
    key = "tie_word_embeddings"
    decoder = fields.boolean(_decoder(raw), key, default=architecture.tied)
    return fields.boolean(raw, key, default=decoder)


def _decoder(raw: RawConfig) -> RawConfig:
    """The part of config.json that is of the decoder: all, if the model only reads text."""
    part = raw.get("text_config")
    return part if isinstance(part, dict) else raw


def _generic(block: LayerConfig) -> GenericLayer:
    if block.generic is None:
        raise TypeError("not a generic layer")
    return block.generic


def _split(
    shapes: Shapes, architecture: Architecture
) -> tuple[list[dict[str, tuple[int, ...]]], dict[str, tuple[int, ...]]]:
    """Tensors of each layer by their names within it, and those outside of the layers."""
    pattern = re.compile(re.escape(architecture.layer).replace(r"\{\}", r"(\d{1,9})") + "(.+)")
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    rest = {}
    for name, shape in shapes.items():
        matched = pattern.fullmatch(name)
        if matched is None:
            rest[name] = shape
        else:
            found.setdefault(int(matched[1]), {})[matched[2]] = shape
    if sorted(found) != list(range(len(found))) or not found:
        missing = next(number for number in range(len(found) + 1) if number not in found)
        raise InvalidCheckpoint(
            f"the files hold no tensor of layer {missing} ('{architecture.layer}')".replace(
                "{}", str(missing)
            ),
            remedy="Copy the model again.",
        )
    return [found[number] for number in range(len(found))], rest


def _checked_counts(raw: RawConfig) -> dict[str, int]:
    """The numbers of decoder layers that config.json says, by key.

    transformers builds as many layers as it says, whatever the files hold. So no part of
    config.json may ask for an absurd number.
    """
    for part in (each for each in raw.values() if isinstance(each, dict)):
        _counts(part)
    return _counts(raw) | _counts(_decoder(raw))


def _check_count(counts: Mapping[str, int], found: int, architecture: Architecture) -> None:
    """Compare the number of layers in the files with config.json, where it says one."""
    if counts and found not in counts.values():
        key, count = next(iter(counts.items()))
        extra = architecture.layer.format(count)
        raise InvalidCheckpoint(
            f"config.json expects {count} layers ({key}), but the files hold {found}",
            field=fields.FIELD,
            remedy="Copy the model again, or give the config.json that was saved with it."
            if found < count
            else f"If the config is right and '{extra}' drafts further tokens, count it there with "
            "num_nextn_predict_layers. Or load the model with transformers' AutoModelForCausalLM, "
            "and save it with save_pretrained: that leaves it out.",
        )


def _counts(part: RawConfig) -> dict[str, int]:
    """The numbers of layers in a part of config.json, by key.

    Classes for an encoder beside the decoder have several.
    """
    return {
        key: fields.checked_integer(key, part[key], fields.MAX_LAYERS)
        for key in fields.LAYER_KEYS
        if part.get(key) is not None
    }


def _block(tensors: Shapes, architecture: Architecture) -> LayerConfig:
    patterns = [each for each in architecture.channels if _fits(each, tensors)]
    feed_forwards = tuple(_feed_forward(each, tensors, patterns) for each in patterns)
    return LayerConfig(
        names=_NO_NAMES,
        query_heads=0,
        kv_heads=0,
        ffn_widths=tuple(each.channels for each in feed_forwards),
        generic=GenericLayer(tuple(tensors.items()), feed_forwards),
    )


def _fits(pattern: ChannelPattern, tensors: Shapes) -> bool:
    return all(name in tensors for name in (pattern.output, *(s.tensor for s in pattern.sources)))


def _feed_forward(
    pattern: ChannelPattern, tensors: Shapes, patterns: list[ChannelPattern]
) -> FeedForward:
    channels = tensors[pattern.output][pattern.axis]
    sources = list(pattern.sources)
    for source in pattern.sources:
        shape = tensors[source.tensor]
        if shape[source.axis] != channels * sum(size for _, size in source.segments):
            raise InvalidCheckpoint(
                f"tensor '{source.tensor}' of a layer has shape {shape}, which does not fit the "
                f"{channels} columns of '{pattern.output}'",
                remedy="Copy the model again.",
            )
        bias = f"{source.tensor.removesuffix('.weight')}.bias"
        if bias in tensors:
            sources.append(ChannelSource(bias, 0, source.segments))
    return FeedForward(
        _name(pattern, patterns), channels, pattern.output, pattern.axis, tuple(sources)
    )


def _name(pattern: ChannelPattern, patterns: list[ChannelPattern]) -> str:
    if len(patterns) == 1:
        return "ffn"
    module = pattern.output.removesuffix(".weight").rpartition(".")[0]
    return f"ffn.{module}"


def _output_rows(blocks: list[LayerConfig]) -> int:
    """Width of the residual stream: what the matrix after an activation puts out."""
    for block in blocks:
        generic = _generic(block)
        for each in generic.feed_forwards:
            return dict(generic.tensors)[each.output][1 - each.axis]
    raise ValueError("no layer has an FFN")


def _count(raw: RawConfig, keys: tuple[str, ...], default: int) -> int:
    """The first of these keys that config.json gives a whole number."""
    found = (raw.get(key) for key in keys)
    return next((value for value in found if type(value) is int and value > 0), default)


def _context(raw: RawConfig, architecture: Architecture) -> int:
    key = architecture.context_key
    decoder = _decoder(raw)
    if key is None or decoder.get(key) is None:
        return _NO_LIMIT
    return fields.integer(decoder, key, fields.MAX_POSITIONS)
