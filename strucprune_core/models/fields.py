"""Reading `config.json` as hostile data: every value is checked before it is believed. No torch.

Nothing in the file can name code to run: `auto_map` and the like are ignored. Where a key changes
the mathematics in a way that this build does not implement, the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture
from strucprune_core.models.config import Activation, RopeConfig, RopeType

RawConfig = Mapping[str, Any]
"""config.json as parsed: keys to anything."""

FIELD = "model.uri"
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


def integer(config: RawConfig, key: str, maximum: int, *, default: int | None = None) -> int:
    """A whole number from 1 to `maximum`."""
    value = config.get(key)
    return checked_integer(key, default if value is None else value, maximum)


def checked_integer(key: str, value: Any, maximum: int) -> int:
    """`value` if it is a whole number from 1 to `maximum`."""
    if value is None:
        raise InvalidCheckpoint(f"config.json has no {key}")
    if type(value) is not int or not 1 <= value <= maximum:  # bool is an int to Python
        raise InvalidCheckpoint(
            f"{key} of config.json is {shown(value)}, not a whole number from 1 to {maximum}"
        )
    return value


def integers(key: str, value: Any, count: int, maximum: int) -> tuple[int, ...]:
    """`value` if it is a list of `count` whole numbers from 1 to `maximum`."""
    if not isinstance(value, list) or len(value) != count:
        raise InvalidCheckpoint(f"{key} of config.json must list {count} whole numbers")
    return tuple(checked_integer(key, item, maximum) for item in value)


def number(config: RawConfig, key: str, *, default: float | None = None) -> float:
    """A positive, finite number."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise InvalidCheckpoint(f"config.json has no {key}")
    if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
        raise InvalidCheckpoint(f"{key} of config.json is {shown(value)}, not a positive number")
    return float(value)


def optional_number(config: RawConfig, key: str) -> float | None:
    """A positive, finite number, or None."""
    return None if config.get(key) is None else number(config, key)


def boolean(config: RawConfig, key: str, *, default: bool = False) -> bool:
    """True or false."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidCheckpoint(f"{key} of config.json is {shown(value)}, not true or false")
    return default if value is None else value


def refuse(config: RawConfig, key: str, *supported: Any, words: str) -> None:
    """Refuse a model whose `key` is present and none of the supported values."""
    if config.get(key) is not None and config[key] not in supported:
        raise UnsupportedArchitecture(f"{words} ({key}) is not supported", field=FIELD)


def refuse_quantised(config: RawConfig) -> None:
    """Quantised weights cannot be cut and solved."""
    if config.get("quantization_config") is not None:
        raise UnsupportedArchitecture(
            "the model is quantised", field=FIELD, remedy="Give the unquantised model."
        )


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
    """The dtype that the model says it is stored in."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise UnsupportedArchitecture(
            f"dtype {shown(name)} is not supported",
            field=FIELD,
            remedy=f"Supported dtypes: {', '.join(_DTYPES)}.",
        )
    return str(name)


def kv_heads(config: RawConfig, heads: int) -> int:
    """Key-value heads; a divisor of the query heads."""
    found = integer(config, "num_key_value_heads", heads, default=heads)
    if heads % found:
        raise InvalidCheckpoint(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {found}"
        )
    return found


def head_dim(config: RawConfig, hidden_size: int, heads: int, *, default: int | None = None) -> int:
    """Width of a head: `head_dim`, else `default`, else the hidden size shared out evenly."""
    if config.get("head_dim") is None and default is None and hidden_size % heads:
        raise InvalidCheckpoint(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    return integer(config, "head_dim", MAX_WIDTH, default=default or hidden_size // heads)


def rotated_dims(head_dim: int, share: float = 1.0) -> int:
    """Dimensions of a head that are rotated."""
    dims = int(head_dim * share)
    if dims % 2 or not 0 < dims <= head_dim:
        raise InvalidCheckpoint(
            f"{dims} rotated dimensions of head_dim {head_dim} is odd or out of range, which "
            f"rotary positions do not allow"
        )
    return dims


def rope_section(config: RawConfig) -> RawConfig:
    """New files have all of it in `rope_parameters`, old ones in `rope_theta`, `rope_scaling`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise InvalidCheckpoint("rope_parameters or rope_scaling of config.json is not an object")
    if "rope_theta" in scaling:
        return scaling
    return {**scaling, "rope_theta": config.get("rope_theta")}


def partial_rotary_factor(config: RawConfig, *, default: float = 1.0, key: str = "") -> float:
    """Share of a head that is rotated, wherever the file says so."""
    for place, name in (
        (rope_section(config), "partial_rotary_factor"),
        (config, "partial_rotary_factor"),
        (config, key),
    ):
        if place.get(name) is not None:
            return number(place, name)
    return default


def rope(section: RawConfig, *, theta: float = 10_000.0) -> RopeConfig:
    """Rotary positions from a section that holds all of their keys."""
    kind = section.get("rope_type", section.get("type", "default"))
    if kind not in get_args(RopeType):
        raise UnsupportedArchitecture(
            f"rope type {shown(kind)} is not supported",
            field=FIELD,
            remedy=f"Supported rope types: {', '.join(get_args(RopeType))}.",
        )
    theta = number(section, "rope_theta", default=theta)
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=number(section, "factor"))
    low, high = number(section, "low_freq_factor"), number(section, "high_freq_factor")
    if low >= high:
        raise InvalidCheckpoint(f"low_freq_factor {low} is not below high_freq_factor {high}")
    return RopeConfig(
        theta=theta,
        type="llama3",
        factor=number(section, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=integer(
            section, "original_max_position_embeddings", MAX_POSITIONS
        ),
    )


def windows(config: RawConfig, layers: int, *, sliding: list[bool]) -> list[int | None]:
    """The attention window of each layer.

    Args:
        config: Its `sliding_window` is the window; its `layer_types`, if given, says which layers
            have it.
        layers: Number of layers.
        sliding: Which layers have it where `layer_types` is missing.
    """
    window = config.get("sliding_window")
    if window is None:
        return [None] * layers
    window = checked_integer("sliding_window", window, MAX_POSITIONS)
    kinds = config.get("layer_types")
    if kinds is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise InvalidCheckpoint(f"layer_types of config.json must list {layers} kinds")
        if any(not isinstance(kind, str) or kind not in known for kind in kinds):
            raise UnsupportedArchitecture(
                f"layer types other than {', '.join(known)} are not supported", field=FIELD
            )
        sliding = [known[kind] for kind in kinds]
    return [window if slides else None for slides in sliding]
