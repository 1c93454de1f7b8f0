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
    Carried,
    ChannelSource,
    Experts,
    FeedForward,
    GenericLayer,
    GenericModel,
    HandedOn,
    LayerConfig,
    LayerNames,
    ModelConfig,
    NormConfig,
    SharedKeys,
)
from strucprune_core.models.drafting import drafting_names
from strucprune_core.models.fields import RawConfig
from strucprune_core.models.foreign_tensors import missing_tensor, other_kind
from strucprune_core.models.generic.architectures import Architecture, ChannelPattern
from strucprune_core.models.generic.config_sizes import (
    check_context,
    check_embedding,
    check_sizes,
    check_width,
)
from strucprune_core.models.generic.expert_table import ExpertPattern
from strucprune_core.models.pruned_shapes import expert_counts, family_of
from strucprune_core.models.tensors import is_derived

Shapes = Mapping[str, tuple[int, ...]]

# transformers' modules know these; nothing asks a generic layer for them.
_NO_NAMES = LayerNames(attention_output="", down="", attention_norm="", ffn_norm="")
_MAX_STREAMS = 64
_NO_LIMIT = fields.MAX_POSITIONS + 1
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
        experts: What is an expert's, where that is known.

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
    check_sizes(raw, shapes)
    shapes = {name: shape for name, shape in shapes.items() if not is_derived(name)}
    stated = _checked_counts(raw)
    found = drafting_names(shapes, architecture.layer, _decoder(raw), set(stated.values()))
    drafting = tuple((name, shapes[name]) for name in sorted(found))
    shapes = {name: shape for name, shape in shapes.items() if name not in found}
    embedding = shapes.get(architecture.embedding)
    if embedding is None or len(embedding) != 2:
        name = architecture.embedding
        longer = [each for each in shapes if each.endswith(name)]
        raise other_kind([*shapes]) or missing_tensor(name, architecture.head, longer)
    layers, rest = _split(shapes, architecture)
    _check_count(stated, len(layers), architecture)
    if architecture.shares_keys:
        layers = _without_unused_keys(_decoder(raw), layers)
    family = family_of(str(raw["model_type"]))
    check_embedding(family, _decoder(raw), architecture.embedding, embedding)
    tied = says_tied(raw, architecture)
    # Tokens that stand for images may have an embedding, and no logit.
    logits = embedding[0] if tied else shapes.get(architecture.head, embedding)[0]
    heads = _count(_decoder(raw), _HEAD_KEYS, 0)
    groups = _count(_decoder(raw), _KV_HEAD_KEYS, heads)
    spared = _spared(_decoder(raw), architecture, len(layers))
    blocks = [
        replace(
            _block(tensors, architecture, whole=number in spared),
            query_heads=heads,
            kv_heads=groups,
        )
        for number, tensors in enumerate(layers)
    ]
    for block in blocks:
        for each in _generic(block).feed_forwards:
            check_width(family, raw, _decoder(raw), each)
    if experts is not None:
        dense = experts.routing(_decoder(raw)).experts
        counts = expert_counts(raw, len(blocks)) or [dense] * len(blocks)
        blocks = [
            _with_experts(block, experts, count or 0)
            for block, count in zip(blocks, counts, strict=True)
        ]
    has_channels = any(_generic(block).feed_forwards for block in blocks)
    if experts is None and not has_channels:
        raise InvalidCheckpoint(
            "no layer of the model has an FFN whose channels can be removed",
            remedy="Give the config.json that was saved with the weights.",
        )
    if experts is None or has_channels:
        hidden = _output_rows(blocks)
    else:
        hidden = experts.number(_decoder(raw), (experts.hidden_key,), embedding[1])
    context = _context(raw, architecture)
    if context != _NO_LIMIT:
        check_context(str(architecture.context_key), context, architecture.embedding, shapes)
    key = architecture.streams_key
    streams = architecture.streams_more
    streams += 1 if key is None else fields.integer(_decoder(raw), key, _MAX_STREAMS)
    carried = _carried(_decoder(raw), architecture, layers, embedding[1])
    return ModelConfig(
        model_type=str(raw["model_type"]),
        family=family,
        names=architecture.names,
        blocks=tuple(blocks),
        vocab_size=min(embedding[0], logits),
        hidden_size=streams * hidden + carried.columns,
        embedding_size=embedding[1],
        head_dim=0,
        rotary_dims=0,
        max_position_embeddings=context,
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
            architecture.streams_axis,
            None if experts is None else experts.routing(_decoder(raw)),
            carried,
        ),
        drafting=drafting,
    )


def _with_experts(block: LayerConfig, pattern: ExpertPattern, count: int) -> LayerConfig:
    """A layer with its experts, if it has some."""
    generic = _generic(block)
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
    # A router may have rows behind the last expert's.
    fused = [shapes[name][axis] for name, axis in sliced if len(shapes[name]) >= _FUSED]
    fits = all(shapes[name][axis] >= count for name, axis in sliced)
    if not numbered or not fits or any(held != count for held in fused):
        held = _held(own, shapes) if own else min(fused)
        raise InvalidCheckpoint(
            f"config.json says that a layer has {count} experts ({pattern.count_keys[0]}), but the "
            f"files hold {'another number' if held == count else held}",
            field=fields.FIELD,
            remedy="Give the config.json that was saved with the weights.",
        )
    return replace(block, generic=replace(generic, experts=Experts(count, own, sliced)))


def _held(own: tuple[str, ...], shapes: Shapes) -> int:
    """Experts of a layer that files hold in full."""
    number = 0
    while all(name.format(number) in shapes for name in own):
        number += 1
    return number


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


def _carried(
    raw: RawConfig, architecture: Architecture, layers: list[dict[str, tuple[int, ...]]], width: int
) -> Carried:
    """What is stored of a token behind its hidden states; `width` is that of its embedding."""
    key = architecture.tokens_key
    tokens = key is not None and (not key or raw.get(key, 1) != 0)
    handed = None
    if architecture.handed is not None:
        argument, place, columns, integers = architecture.handed
        size = fields.integer(raw, columns, fields.MAX_WIDTH)
        handed = HandedOn(argument, place, size, integers)
    return Carried(
        token_id=tokens,
        embedding=width if tokens and architecture.reads_embedding else 0,
        keys=_shared_keys(raw, layers) if architecture.shares_keys else (),
        handed=handed,
    )


def _shared_keys(
    raw: RawConfig, layers: list[dict[str, tuple[int, ...]]]
) -> tuple[SharedKeys, ...]:
    """Keys and values that the last layers attend to: of the last layer of their type before."""
    first = _first_sharing(raw, len(layers))
    if first == len(layers):
        return ()
    kinds = _layer_types(raw, len(layers))
    found = []
    for kind in dict.fromkeys(kinds[first:]):
        before = [number for number in range(first) if kinds[number] == kind]
        shapes = [
            layers[before[-1]].get(f"self_attn.{name}.weight") if before else None
            for name in ("k_proj", "k_norm")
        ]
        projection, norm = shapes
        if not projection or not norm or projection[0] % norm[0]:
            raise InvalidCheckpoint(
                f"layers of type '{kind}' share keys, but the files hold no layer that makes them",
                field=fields.FIELD,
                remedy="Give the config.json that was saved with the weights.",
            )
        found.append(SharedKeys(kind, projection[0] // norm[0], norm[0]))
    return tuple(found)


def _first_sharing(raw: RawConfig, layers: int) -> int:
    """The first layer that makes no keys and values of its own; `layers` if all do."""
    value = raw.get("num_kv_shared_layers")
    if value is None or value == 0:
        return layers
    return layers - fields.checked_integer("num_kv_shared_layers", value, layers - 1)


def _layer_types(raw: RawConfig, layers: int) -> list[str]:
    kinds = raw.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise InvalidCheckpoint(
            f"config.json must say the type of each of {layers} layers (layer_types)",
            field=fields.FIELD,
            remedy="Save the model again with transformers: it writes this key.",
        )
    return [str(kind) for kind in kinds]


def _without_unused_keys(
    raw: RawConfig, layers: list[dict[str, tuple[int, ...]]]
) -> list[dict[str, tuple[int, ...]]]:
    """Layers without what makes keys and values, where they attend to those of another layer.

    Published files hold these tensors; transformers does not load them.
    """
    first = _first_sharing(raw, len(layers))
    unused = {f"self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm", "v_norm")}
    return [
        {name: shape for name, shape in tensors.items() if number < first or name not in unused}
        for number, tensors in enumerate(layers)
    ]


def _spared(raw: RawConfig, architecture: Architecture, layers: int) -> set[int]:
    """The layers that keep all their channels."""
    key = architecture.spared_key
    value = None if key is None else raw.get(key)
    if value is None:
        return set()
    if not isinstance(value, list):  # One value for all layers.
        value = [value] * layers
    if architecture.spared_numbers:
        return {number for number in value if type(number) is int}
    return {number for number, each in enumerate(value) if each}


def _block(tensors: Shapes, architecture: Architecture, *, whole: bool) -> LayerConfig:
    """A layer; `whole` if it keeps all its channels."""
    patterns = [each for each in architecture.channels if not whole and _fits(each, tensors)]
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
