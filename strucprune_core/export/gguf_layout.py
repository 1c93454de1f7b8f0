"""Names, dtypes and metadata of a llama in GGUF, in both directions. No torch, no gguf.

The architecture is `llama` if all layers have one shape, else `deci`: llama with lists of widths
and head counts by layer (`feed_forward_length`, `attention.head_count`, `.head_count_kv`). Rows of
query and key projections are permuted: a head's rotary pairs are adjacent in GGUF (x0, y0, x1, y1,
..), and in two halves in transformers (x0, x1, .., y0, y1, ..).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.config import ModelConfig, RopeConfig
from strucprune_core.models.pruned_shapes import FORMAT_VERSION, PRUNED_PREFIX
from strucprune_core.models.tensors import expected_tensors, tensor_name

GgufDtype = Literal["F32", "F16", "BF16", "Q8_0"]
Value = int | float | str | list[int]

Q8_0_BLOCK = 32
"""Weights of a row that share a scale in Q8_0; see `export.q8_0`."""
Q8_0_BLOCK_BYTES = 2 + Q8_0_BLOCK

# Values that are stored together, and the bytes that they take.
_BLOCKS: Mapping[GgufDtype, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (Q8_0_BLOCK, Q8_0_BLOCK_BYTES),
}
ROPE_FACTORS = "rope_freqs.weight"
"""Factors by which each pair of a head rotates slower (llama3), (head_dim / 2,) float32."""

REPORT = "Leave 'gguf' out of pruning.exports, and please report this."
"""Remedy for a GGUF file of ours that is wrong."""

_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
# GGUF's numbers for the dtype of most matrices in a file.
_FILE_TYPES: Mapping[GgufDtype, int] = {"F16": 1, "Q8_0": 7, "BF16": 32}
# Of the block formats; ggml has kept it since 2023.
_QUANTISATION_VERSION = 2


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        name: In GGUF.
        source: In the checkpoint.
        shape: Rows first, as in the checkpoint.
        dtype: As it is written.
        rotary_heads: Heads whose rows are permuted; 0 for all but query and key projections.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: GgufDtype
    rotary_heads: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        count, size = _BLOCKS[self.dtype]
        return math.prod(self.shape) // count * size


def plan_tensors(
    config: ModelConfig, stored: Callable[[str], str], *, quantised: bool = False
) -> list[GgufTensor]:
    """All tensors of a model, in file order.

    Args:
        config: A llama.
        stored: Safetensors dtype of a checkpoint tensor by name. bfloat16 matrices stay bfloat16,
            others become float16; vectors become float32.
        quantised: Whether matrices become Q8_0, as llama.cpp's quantiser does it: those whose rows
            are no multiple of 32 become float16.
    """
    names = {source: (name, 0) for source, name in _MODEL.items()}
    for layer, block in enumerate(config.blocks):
        heads = {
            f"{block.names.query}.weight": block.query_heads,
            f"{block.names.key}.weight": block.kv_heads,
        }
        for role, name in _LAYER.items():
            source = tensor_name(config, layer, role)
            names[source] = (f"blk.{layer}.{name}", heads.get(role, 0))
    return [
        GgufTensor(
            names[source][0],
            source,
            shape,
            _quantised_dtype(shape) if quantised else _dtype(shape, stored(source)),
            names[source][1],
        )
        for source, shape in expected_tensors(config).items()
    ]


def _dtype(shape: tuple[int, ...], stored: str) -> GgufDtype:
    if len(shape) == 1:
        return "F32"
    return "BF16" if stored == "BF16" else "F16"


def _quantised_dtype(shape: tuple[int, ...]) -> GgufDtype:
    if len(shape) == 1:
        return "F32"
    return "F16" if shape[1] % Q8_0_BLOCK else "Q8_0"


def architecture(config: ModelConfig) -> str:
    """`llama` if one shape holds for all layers, else `deci`."""
    shapes = {(block.query_heads, block.kv_heads, block.ffn_widths) for block in config.blocks}
    return "llama" if len(shapes) == 1 else "deci"


def metadata(config: ModelConfig, name: str, tensors: list[GgufTensor]) -> dict[str, Value]:
    """Key-value pairs that describe the model; integers are written as uint32, floats as float32.

    Args:
        config: A llama.
        name: The model's name.
        tensors: Its tensors.
    """
    arch = architecture(config)
    rope = config.blocks[0].rope or RopeConfig()
    matrices: list[GgufDtype] = [tensor.dtype for tensor in tensors if len(tensor.shape) == 2]
    most = "Q8_0" if "Q8_0" in matrices else max(sorted(set(matrices)), key=matrices.count)
    pairs: dict[str, Value] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[most],
        f"{arch}.block_count": config.layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": [sum(block.ffn_widths) for block in config.blocks],
        f"{arch}.attention.head_count": [block.query_heads for block in config.blocks],
        f"{arch}.attention.head_count_kv": [block.kv_heads for block in config.blocks],
        f"{arch}.attention.layer_norm_rms_epsilon": config.norm.eps,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.rope.dimension_count": config.rotary_dims,
        f"{arch}.rope.freq_base": rope.theta,
        f"{arch}.vocab_size": config.vocab_size,
    }
    if most == "Q8_0":
        pairs["general.quantization_version"] = _QUANTISATION_VERSION
    if rope.type == "linear":
        pairs[f"{arch}.rope.scaling.type"] = "linear"
        pairs[f"{arch}.rope.scaling.factor"] = rope.factor
    if arch == "llama":
        return {key: value[0] if isinstance(value, list) else value for key, value in pairs.items()}
    return pairs


def raw_config(
    field: Callable[[str], Any], tensor_names: set[str], rope: RopeConfig
) -> dict[str, Any]:
    """The config.json (of layout `per_layer`) of the model in a GGUF file.

    Args:
        field: Value of a metadata key, None if there is none.
        tensor_names: The file's tensors.
        rope: The model's; a GGUF file has only the effect of llama3 scaling (`ROPE_FACTORS`).

    Raises:
        InvalidCheckpoint: a key is missing.
    """
    arch = field("general.architecture")

    def needed(key: str) -> Any:
        value = field(f"{arch}.{key}")
        if value is None:
            raise InvalidCheckpoint(f"the GGUF file has no {arch}.{key}", remedy=REPORT)
        return value

    layers = needed("block_count")

    def by_layer(key: str) -> list[int]:
        value = needed(key)
        return value if isinstance(value, list) else [value] * layers

    widths = by_layer("feed_forward_length")
    heads, kv_heads = by_layer("attention.head_count"), by_layer("attention.head_count_kv")
    of_layers = zip(heads, kv_heads, strict=True)
    query_heads, key_heads = next(pair for pair in of_layers if all(pair))
    theta = needed("rope.freq_base")
    positions: dict[str, Any] = {"rope_type": "default"}
    if field(f"{arch}.rope.scaling.type") == "linear":
        positions = {"rope_type": "linear", "factor": needed("rope.scaling.factor")}
    if ROPE_FACTORS in tensor_names:
        positions = rope_parameters(rope)
    return {
        "model_type": f"{PRUNED_PREFIX}llama",
        "vocab_size": needed("vocab_size"),
        "hidden_size": needed("embedding_length"),
        "intermediate_size": max(widths),
        "num_hidden_layers": layers,
        "num_attention_heads": query_heads,
        "num_key_value_heads": key_heads,
        "head_dim": needed("attention.key_length"),
        "hidden_act": "silu",
        "max_position_embeddings": needed("context_length"),
        "rms_norm_eps": needed("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {**positions, "rope_theta": theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": _MODEL["lm_head.weight"] not in tensor_names,
        "strucprune": {
            "format_version": FORMAT_VERSION,
            "layers": [
                {"ffn": [width] if width else [], "query_heads": queries, "kv_heads": keys}
                for width, queries, keys in zip(widths, heads, kv_heads, strict=True)
            ],
        },
    }


def rope_factors(rope: RopeConfig, dims: int) -> list[float] | None:
    """Factors by which llama3 scaling slows each pair of a head, (dims / 2,); None without it.

    Wavelengths above context / low_freq_factor are stretched by `factor`, those below context /
    high_freq_factor are kept, and the speeds of those between are blended (Llama 3.1).
    """
    if rope.type != "llama3":
        return None
    context, low, high = (
        rope.original_max_position_embeddings,
        rope.low_freq_factor,
        rope.high_freq_factor,
    )
    factors = []
    for pair in range(dims // 2):
        turns = context / (2 * math.pi * rope.theta ** (2 * pair / dims))  # In the context.
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1.0 / ((1.0 - kept) / rope.factor + kept))
    return factors


def rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """The section of config.json that describes rotary positions."""
    section: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type != "default":
        section["factor"] = rope.factor
    if rope.type == "llama3":
        section |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        }
    return section
