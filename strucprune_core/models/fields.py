"""Reads `config.json` without trusting it: every value is checked before it is used. No torch.

Nothing in the file can name code to run: `auto_map` and similar keys are ignored. Where a key
changes the mathematics in a way that this build does not implement, the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.models.config import Activation, RopeConfig, RopeType
from strucprune_core.storage.uri import may_be_hub_id

RawConfig = Mapping[str, Any]
"""config.json as parsed: keys to anything."""

FIELD = "model.uri"
LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "depth",
    "num_decoder_layers",
    "num_encoder_layers",
)
"""Keys by which classes of transformers count layers."""
MAX_LAYERS = 1024
MAX_WIDTH = 2**20
MAX_VOCABULARY = 2**24
MAX_POSITIONS = 2**30
MAX_EXPERTS = 2**14
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


def bad_config(message: str) -> InvalidCheckpoint:
    """The error for a config.json with a value that no model can have."""
    return InvalidCheckpoint(
        message, remedy="Correct config.json, or use the one that was saved with the weights."
    )


def integer(config: RawConfig, key: str, maximum: int, *, default: int | None = None) -> int:
    """A whole number from 1 to `maximum`."""
    value = config.get(key)
    return checked_integer(key, default if value is None else value, maximum)


def whole_number(config: RawConfig, key: str, maximum: int, *, default: int) -> int:
    """A whole number from 0 to `maximum`."""
    return 0 if config.get(key) == 0 else integer(config, key, maximum, default=default)


def checked_integer(key: str, value: Any, maximum: int) -> int:
    """`value` if it is a whole number from 1 to `maximum`."""
    if value is None:
        raise bad_config(f"config.json has no {key}")
    if type(value) is not int or not 1 <= value <= maximum:  # Not isinstance: a bool is an int.
        raise bad_config(
            f"{key} of config.json is {shown(value)}, not a whole number from 1 to {maximum}"
        )
    return value


def integers(key: str, value: Any, count: int, maximum: int) -> tuple[int, ...]:
    """`value` if it is a list of `count` whole numbers from 1 to `maximum`."""
    if not isinstance(value, list) or len(value) != count:
        raise bad_config(f"{key} of config.json must list {count} whole numbers")
    return tuple(checked_integer(key, item, maximum) for item in value)


def number(config: RawConfig, key: str, *, default: float | None = None) -> float:
    """A positive, finite number."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise bad_config(f"config.json has no {key}")
    if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
        raise bad_config(f"{key} of config.json is {shown(value)}, not a positive number")
    return float(value)


def optional_number(config: RawConfig, key: str) -> float | None:
    """A positive, finite number, or None."""
    return None if config.get(key) is None else number(config, key)


def boolean(config: RawConfig, key: str, *, default: bool = False) -> bool:
    """True or false."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise bad_config(f"{key} of config.json is {shown(value)}, not true or false")
    return default if value is None else value


def refuse(config: RawConfig, key: str, *supported: Any, words: str) -> None:
    """Refuse a model whose `key` is present and none of the supported values."""
    if config.get(key) is not None and config[key] not in supported:
        raise UnsupportedArchitecture(
            f"{words} ({key} of config.json) is not supported",
            field=FIELD,
            remedy="Prune a model without it.",
        )


def refuse_variants(config: RawConfig) -> None:
    """Refuse variants that transformers knows in every family, and this build in none."""
    refuse_quantised(config)
    refuse_old_rope_name(config)
    refuse(config, "is_causal", True, words="attention to later tokens")
    refuse(config, "use_bidirectional_attention", False, words="bidirectional attention")
    refuse(config, "add_cross_attention", False, words="cross attention")
    refuse(config, "per_layer_config", {}, words="other shapes in some layers")


def refuse_old_rope_name(config: RawConfig) -> None:
    """Refuse 'su', which Phi-3's first files called longrope.

    transformers reads it for phi3 alone, and not where the original context is beside the section,
    as those files have it. So what is written could not be loaded either.
    """
    for key in ("rope_scaling", "rope_parameters"):
        part = config.get(key)
        if isinstance(part, dict) and "su" in (part.get("rope_type"), part.get("type")):
            raise UnsupportedArchitecture(
                f"rope type 'su' ({key} of config.json) is an old name of 'longrope'",
                field=FIELD,
                remedy="Write 'longrope' there instead.",
            )


def refuse_quantised(config: RawConfig) -> None:
    """Refuse a model whose weights are stored in fewer bits than floating-point numbers have.

    Those that are dequantised while they are read no longer say so: see `checkpoint.quantised`.
    """
    for key in ("quantization_config", "quantization"):  # The second is MLX's.
        given = config.get(key)
        if given is None:
            continue
        method = given.get("quant_method") if isinstance(given, dict) else None
        of = f", quant_method {shown(method)}" if isinstance(method, str) else ""
        raise UnsupportedArchitecture(
            f"the model is quantised ({key} of config.json{of})",
            field=FIELD,
            remedy=f"Prune the unquantised model{_made_from(config)}, and quantise the result.",
        )


def _made_from(config: RawConfig) -> str:
    """The model on a hub that config.json says this one was made from."""
    source = config.get("_name_or_path")
    return f" (hf://{source}?)" if isinstance(source, str) and may_be_hub_id(source) else ""


def activation(config: RawConfig, key: str, *, default: str) -> Activation:
    """The FFN's activation function."""
    name = config.get(key)
    name = default if name is None else name
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnsupportedArchitecture(
            f"activation {shown(name)} is not supported",
            field=FIELD,
            remedy=f"Supported activations: {', '.join(_ACTIVATIONS)}.",
        )
    return _ACTIVATIONS[name]


def dtype(config: RawConfig) -> str:
    """The dtype that config.json says the model is stored in."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise UnsupportedArchitecture(
            f"dtype {shown(name)} is not supported",
            field=FIELD,
            remedy=f"Supported dtypes: {', '.join(_DTYPES)}.",
        )
    return str(name)


def kv_heads(config: RawConfig, heads: int, *, default: int | None = None) -> int:
    """Key-value heads, a divisor of the query heads: if null one for each, if absent `default`."""
    absent = default if default is not None and "num_key_value_heads" not in config else heads
    count = integer(config, "num_key_value_heads", heads, default=absent)
    if heads % count:
        raise bad_config(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {count}"
        )
    return count


def head_dim(config: RawConfig, hidden_size: int, heads: int, *, default: int | None = None) -> int:
    """Width of a head: `head_dim`, else `default`, else the hidden size divided evenly."""
    if config.get("head_dim") is None and default is None and hidden_size % heads:
        raise bad_config(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    return integer(config, "head_dim", MAX_WIDTH, default=default or hidden_size // heads)


def rotated_dims(head_dim: int, share: float = 1.0) -> int:
    """Dimensions of a head that are rotated."""
    dims = int(head_dim * share)
    if dims % 2 or not 0 < dims <= head_dim:
        raise bad_config(
            f"{dims} of head_dim {head_dim} dimensions would be rotated, but rotary positions "
            f"need an even number from 2 to head_dim"
        )
    return dims


def section(config: RawConfig, key: str) -> dict[str, Any]:
    """A copy of an object; {} if it is absent."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise bad_config(f"{key} of config.json is {shown(value)}, not an object")
    return dict(value or {})


def rope_section(
    config: RawConfig,
    *,
    theta_key: str = "rope_theta",
    partial_key: str = "partial_rotary_factor",
) -> dict[str, Any]:
    """All keys of the rotary positions in one section.

    New files have them in `rope_parameters`. Old ones have them in `rope_scaling`, and the base and
    the rotated share beside it, under the family's names. Where keys contradict each other, the
    one that wins in transformers wins here.
    """
    given = section(config, "rope_scaling") or section(config, "rope_parameters")
    if any(isinstance(value, dict) for value in given.values()):
        raise UnsupportedArchitecture(
            "rotary positions by kind of layer (rope_parameters) are not supported for "
            f"'{config.get('model_type')}'",
            field=FIELD,
        )
    given.setdefault("rope_theta", config.get(theta_key))
    given.setdefault("partial_rotary_factor", config.get(partial_key))
    original = config.get("original_max_position_embeddings")
    return given if original is None else {**given, "original_max_position_embeddings": original}


def rope(given: RawConfig, *, dims: int, context: int, theta: float = 10_000.0) -> RopeConfig:
    """Rotary positions.

    Args:
        given: A section that holds all of their keys.
        dims: Dimensions of a head that are rotated.
        context: The model's context, tokens.
        theta: Default of the family.
    """
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in get_args(RopeType):
        raise UnsupportedArchitecture(
            f"rope type {shown(kind)} is not supported",
            field=FIELD,
            remedy=f"Supported rope types: {', '.join(get_args(RopeType))}.",
        )
    plain = RopeConfig(theta=number(given, "rope_theta", default=theta), type=cast(RopeType, kind))
    if kind == "default":
        return plain
    if kind == "linear":
        return replace(plain, factor=number(given, "factor"))
    original = context
    if kind != "dynamic":  # Its stretch begins where the model's context ends.
        key = "original_max_position_embeddings"
        original = integer(given, key, MAX_POSITIONS, default=context)
    plain = replace(plain, original_max_position_embeddings=original)
    if kind == "llama3":
        return _llama3(given, plain)
    if kind == "longrope":
        return _longrope(given, plain, dims, context)
    if kind == "yarn":
        return _yarn(given, plain, context)
    if dims <= 2:
        raise bad_config(f"rope type 'dynamic' cannot rotate {dims} dimensions of a head")
    return replace(plain, factor=number(given, "factor"))


def _llama3(given: RawConfig, plain: RopeConfig) -> RopeConfig:
    low, high = number(given, "low_freq_factor"), number(given, "high_freq_factor")
    if low >= high:
        raise bad_config(f"low_freq_factor {low} is not below high_freq_factor {high}")
    factor = number(given, "factor")
    return replace(plain, factor=factor, low_freq_factor=low, high_freq_factor=high)


def _yarn(given: RawConfig, plain: RopeConfig, context: int) -> RopeConfig:
    stretch = context / plain.original_max_position_embeddings
    factor = number(given, "factor", default=stretch)
    scale, scale_all = optional_number(given, "mscale"), optional_number(given, "mscale_all_dim")
    amplitude = _yarn_amplitude(factor, 1.0)
    if scale and scale_all:
        amplitude = _yarn_amplitude(factor, scale) / _yarn_amplitude(factor, scale_all)
    return replace(
        plain,
        factor=factor,
        beta_slow=number(given, "beta_slow", default=1.0),
        beta_fast=number(given, "beta_fast", default=32.0),
        truncate=boolean(given, "truncate", default=True),
        amplitude=number(given, "attention_factor", default=amplitude),
    )


def _yarn_amplitude(factor: float, scale: float) -> float:
    """Peng et al. 2023, eq. 22: the temperature of attention, as a factor of queries and keys."""
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(given: RawConfig, plain: RopeConfig, dims: int, context: int) -> RopeConfig:
    original = plain.original_max_position_embeddings
    factor = number(given, "factor", default=context / original)
    amplitude = 1.0
    if factor > 1.0 and original > 1:
        amplitude = math.sqrt(1.0 + math.log(factor) / math.log(original))
    return replace(
        plain,
        short_factors=_numbers(given, "short_factor", dims // 2),
        long_factors=_numbers(given, "long_factor", dims // 2),
        amplitude=number(given, "attention_factor", default=amplitude),
    )


def _numbers(given: RawConfig, key: str, count: int) -> tuple[float, ...]:
    """A list of `count` positive numbers."""
    values = given.get(key)
    if not isinstance(values, list) or len(values) != count:
        raise bad_config(f"{key} of config.json must list {count} numbers")
    return tuple(number({key: value}, key) for value in values)


_LAYER_KINDS = {"sliding_attention": True, "full_attention": False}


def window(config: RawConfig, *, default: int | None = None) -> int | None:
    """The attention window: none if null, the family's default if absent."""
    size = config.get("sliding_window", default)
    return None if size is None else checked_integer("sliding_window", size, MAX_POSITIONS)


def windows_by_layer(config: RawConfig, size: int | None, default: list[bool]) -> list[int | None]:
    """The window of each layer, where `layer_types` lists the layers that have it.

    Args:
        config: config.json.
        size: The window.
        default: Which layers have it where `layer_types` is absent.
    """
    sliding = _sliding_layers(config, default)
    if size is None and any(sliding):
        raise bad_config(
            "sliding_window of config.json is null, but some layers have sliding attention"
        )
    return [size if slides else None for slides in sliding]


def windows_alike(config: RawConfig, size: int | None, layers: int) -> list[int | None]:
    """The window of each layer, where the family's class does not know `layer_types`."""
    alike = [size is not None] * layers
    if _sliding_layers(config, alike) != alike:
        raise UnsupportedArchitecture(
            f"layer_types contradict sliding_window: layers of "
            f"'{config.get('model_type')}' all have the same window",
            field=FIELD,
        )
    return [size] * layers


def _sliding_layers(config: RawConfig, default: list[bool]) -> list[bool]:
    kinds = config.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != len(default):
        raise bad_config(f"layer_types of config.json must list {len(default)} kinds")
    if any(not isinstance(kind, str) or kind not in _LAYER_KINDS for kind in kinds):
        raise UnsupportedArchitecture(
            f"layer types other than {', '.join(_LAYER_KINDS)} are not supported", field=FIELD
        )
    return [_LAYER_KINDS[kind] for kind in kinds]
