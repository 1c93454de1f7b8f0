"""`config.json` of a model, parsed from an allow-list of architectures and keys. No torch.

Nothing in the file is believed before it is checked, and nothing in it can name code to run:
`auto_map` and the like are ignored. Where a key changes the mathematics in a way that this build
does not implement, the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.checkpoint.index import CheckpointIndex
from strucprune_core.errors import InvalidCheckpoint, UnsupportedArchitecture

PRUNED_LLAMA = "strucprune_llama"
"""Model type of our own checkpoints whose FFN widths differ by layer."""
SUPPORTED_MODEL_TYPES = ("llama", PRUNED_LLAMA)

RopeType = Literal["default", "linear", "llama3"]
HiddenAct = Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"]

_FIELD = "model.uri"
_MAX_LAYERS = 1024
_MAX_WIDTH = 2**20
_MAX_VOCABULARY = 2**24
_MAX_POSITIONS = 2**30
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        theta: Base of the rotation speeds.
        type: How the speeds are scaled; "default" does not.
        factor: Stretch of the context ("linear", "llama3").
        low_freq_factor: Below this many turns per original context, fully stretched ("llama3").
        high_freq_factor: Above this many turns per original context, kept ("llama3").
        original_max_position_embeddings: Context before the stretch, tokens ("llama3").
    """

    theta: float = 10_000.0
    type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape and constants of a decoder. `intermediate_sizes` has one FFN width per layer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    intermediate_sizes: tuple[int, ...]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    hidden_act: HiddenAct
    dtype: str

    @property
    def ffn_channels(self) -> int:
        """FFN channels of all layers together."""
        return sum(self.intermediate_sizes)

    @property
    def parameters_per_channel(self) -> int:
        """Parameters that go with one FFN channel: rows of gate and up, a column of down."""
        return 3 * self.hidden_size + (2 if self.mlp_bias else 0)


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Check a parsed config.json.

    Raises:
        UnsupportedArchitecture: the model type, or a variant it asks for, is not implemented.
        InvalidCheckpoint: a key is missing or has a value that cannot be.
    """
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedArchitecture(
            f"architecture {shown(model_type)} is not supported",
            field=_FIELD,
            remedy=f"Supported model types: {', '.join(SUPPORTED_MODEL_TYPES)}.",
        )
    _refuse_quantised(config)
    layers = _integer(config, "num_hidden_layers", _MAX_LAYERS)
    heads = _integer(config, "num_attention_heads", _MAX_WIDTH)
    hidden_size = _integer(config, "hidden_size", _MAX_WIDTH)
    intermediate_size = _integer(config, "intermediate_size", _MAX_WIDTH)
    return ModelConfig(
        model_type=model_type,
        vocab_size=_integer(config, "vocab_size", _MAX_VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        intermediate_sizes=_widths(config, model_type, layers, intermediate_size),
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, hidden_size, heads),
        rms_norm_eps=_number(config, "rms_norm_eps", default=1e-6),
        rope=_rope(config),
        max_position_embeddings=_integer(
            config, "max_position_embeddings", _MAX_POSITIONS, default=2048
        ),
        tie_word_embeddings=_boolean(config, "tie_word_embeddings"),
        attention_bias=_boolean(config, "attention_bias"),
        mlp_bias=_boolean(config, "mlp_bias"),
        hidden_act=_hidden_act(config),
        dtype=_dtype(config),
    )


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the model, in the order of transformers' own files."""
    d = config.hidden_size
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    for layer in range(config.layers):
        for role, shape in layer_tensors(config, layer).items():
            tensors[f"model.layers.{layer}.{role}"] = shape
    tensors["model.norm.weight"] = (d,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, d)
    return tensors


def layer_tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Roles and shapes of one decoder layer's tensors."""
    d, f = config.hidden_size, config.intermediate_sizes[layer]
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    linear = {
        "self_attn.q_proj": (queries, d),
        "self_attn.k_proj": (keys, d),
        "self_attn.v_proj": (keys, d),
        "self_attn.o_proj": (d, queries),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    tensors: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        tensors[f"{name}.weight"] = shape
        if config.mlp_bias if name.startswith("mlp") else config.attention_bias:
            tensors[f"{name}.bias"] = shape[:1]
    tensors["input_layernorm.weight"] = (d,)
    tensors["post_attention_layernorm.weight"] = (d,)
    return tensors


def check_tensors(config: ModelConfig, index: CheckpointIndex) -> None:
    """Compare what the files hold with what the config promises.

    Raises:
        InvalidCheckpoint: a tensor is missing, misshaped, not floating-point, or unknown (it would
            be lost without a word).
    """
    expected = expected_tensors(config)
    for name, shape in expected.items():
        info = index.tensors.get(name)
        if info is None:
            raise InvalidCheckpoint(
                f"tensor '{name}' is missing",
                remedy="Copy the model again, or correct its config.json.",
            )
        if info.shape != shape:
            raise InvalidCheckpoint(
                f"tensor '{name}' has shape {info.shape}, but config.json makes it {shape}"
            )
        if info.dtype not in _FLOAT_DTYPES:
            raise InvalidCheckpoint(
                f"tensor '{name}' has dtype {info.dtype}; only {', '.join(_FLOAT_DTYPES)} "
                f"can be pruned",
                remedy="Give the unquantised model.",
            )
    for name in index.tensors:
        if name not in expected and not _is_redundant(config, name):
            raise InvalidCheckpoint(
                f"tensor {shown(name)} is not part of architecture '{config.model_type}'",
                remedy="Adapters must be merged and quantised models given unquantised.",
            )


def _is_redundant(config: ModelConfig, name: str) -> bool:
    """Tensors that older tools wrote although the model derives them."""
    if name == "lm_head.weight":
        return config.tie_word_embeddings
    return name.endswith(".rotary_emb.inv_freq")


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise UnsupportedArchitecture(
            "the model is quantised", field=_FIELD, remedy="Give the unquantised model."
        )


def _widths(
    config: Mapping[str, Any], model_type: str, layers: int, intermediate_size: int
) -> tuple[int, ...]:
    """FFN width of each layer: listed in our own pruned checkpoints, else all equal."""
    if model_type != PRUNED_LLAMA:
        return (intermediate_size,) * layers
    section = config.get("strucprune")
    widths = section.get("intermediate_sizes") if isinstance(section, dict) else None
    if not isinstance(widths, list) or len(widths) != layers:
        raise InvalidCheckpoint(
            f"strucprune.intermediate_sizes of config.json must list {layers} widths"
        )
    return tuple(_checked_integer("strucprune.intermediate_sizes", w, _MAX_WIDTH) for w in widths)


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    kv_heads = _integer(config, "num_key_value_heads", heads, default=heads)
    if heads % kv_heads:
        raise InvalidCheckpoint(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    return kv_heads


def _head_dim(config: Mapping[str, Any], hidden_size: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden_size % heads:
        raise InvalidCheckpoint(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    head_dim = _integer(config, "head_dim", _MAX_WIDTH, default=hidden_size // heads)
    if head_dim % 2:
        raise InvalidCheckpoint(f"head_dim {head_dim} is odd, which rotary positions do not allow")
    return head_dim


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    """New files have all of it in `rope_parameters`, old ones in `rope_theta`, `rope_scaling`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise InvalidCheckpoint("rope_parameters or rope_scaling of config.json is not an object")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in get_args(RopeType):
        raise UnsupportedArchitecture(
            f"rope type {shown(kind)} is not supported",
            field=_FIELD,
            remedy=f"Supported rope types: {', '.join(get_args(RopeType))}.",
        )
    for place in (scaling, config):
        if place.get("partial_rotary_factor", 1) != 1:
            raise UnsupportedArchitecture(
                "partial rotary positions are not supported", field=_FIELD
            )
    theta = _number(scaling if "rope_theta" in scaling else config, "rope_theta", default=10_000.0)
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=_number(scaling, "factor"))
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if low >= high:
        raise InvalidCheckpoint(f"low_freq_factor {low} is not below high_freq_factor {high}")
    return RopeConfig(
        theta=theta,
        type="llama3",
        factor=_number(scaling, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=_integer(
            scaling, "original_max_position_embeddings", _MAX_POSITIONS
        ),
    )


def _hidden_act(config: Mapping[str, Any]) -> HiddenAct:
    name = config.get("hidden_act", "silu")
    if name not in get_args(HiddenAct):
        raise UnsupportedArchitecture(
            f"activation {shown(name)} is not supported",
            field=_FIELD,
            remedy=f"Supported activations: {', '.join(get_args(HiddenAct))}.",
        )
    return cast(HiddenAct, name)


def _dtype(config: Mapping[str, Any]) -> str:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise UnsupportedArchitecture(
            f"dtype {shown(name)} is not supported",
            field=_FIELD,
            remedy=f"Supported dtypes: {', '.join(_DTYPES)}.",
        )
    return str(name)


def _integer(
    config: Mapping[str, Any], key: str, maximum: int, *, default: int | None = None
) -> int:
    value = config.get(key)
    return _checked_integer(key, default if value is None else value, maximum)


def _checked_integer(key: str, value: Any, maximum: int) -> int:
    if value is None:
        raise InvalidCheckpoint(f"config.json has no {key}")
    if type(value) is not int or not 1 <= value <= maximum:  # bool is an int to Python
        raise InvalidCheckpoint(
            f"{key} of config.json is {shown(value)}, not a whole number from 1 to {maximum}"
        )
    return value


def _number(config: Mapping[str, Any], key: str, *, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise InvalidCheckpoint(f"config.json has no {key}")
    if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
        raise InvalidCheckpoint(f"{key} of config.json is {shown(value)}, not a positive number")
    return float(value)


def _boolean(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidCheckpoint(f"{key} of config.json is {shown(value)}, not true or false")
    return bool(value)
