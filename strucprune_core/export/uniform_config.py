"""config.json in layout `uniform`: a class of transformers that can have such heads. No torch.

Where heads were removed, query heads times their width are no longer the hidden size. Not every
class can have that:

| family | heads that its class can have |
|---|---|
| opt, gpt2, gpt_neox | those that divide the hidden size into heads of the dense width: all |
| llama, gemma2, gemma3_text | any number that divides the hidden size; the width is a key |
| phi3 with longrope | as many as make `hidden_size // heads` the width |
| all others | any number; the width is a key |

mistral's class has llama's tensors and arithmetic, but no biases, and any number of heads. A llama
that llama's own class cannot hold is written as one.
"""

from __future__ import annotations

from typing import Any

from strucprune_core.export.earlier_keys import with_earlier_keys
from strucprune_core.models.config import ModelConfig
from strucprune_core.models.generic.size_keys import with_widths

_FIXED = ("opt", "gpt2", "gpt_neox")
_EVEN = ("llama", "gemma2", "gemma3_text")
# Names that families give to the width of an FFN or expert.
_WIDTH_KEYS = {"opt": "ffn_dim", "gpt2": "n_inner"}
# Keys of llama's that mistral's class lacks or warns of.
_LLAMA_ALONE = ("attention_bias", "mlp_bias", "pretraining_tp", "layer_types")
# AutoTokenizer takes the tokenizer of a mistral that an earlier release wrote for a damaged one.
_LEAST_RELEASE = "5.0.0"


def loading_family(shape: ModelConfig) -> str | None:
    """The family whose class in transformers computes a model, with one shape for all layers.

    Args:
        shape: A model of a family that is written out; its first layer's heads count.

    Returns:
        The model's own family, "mistral" for a llama that llama's class cannot hold; None if no
        class can.
    """
    if _can_say(shape):
        return shape.family
    has_bias = shape.qkv_bias or shape.attention_output_bias or shape.ffn_bias
    return "mistral" if shape.family == "llama" and not has_bias else None


def _can_say(shape: ModelConfig) -> bool:
    """Whether the config of the model's own family can express its heads."""
    block = shape.blocks[0]
    heads = block.query_heads
    if shape.family in _FIXED:
        return heads * shape.head_dim == shape.hidden_size
    if shape.family in _EVEN:
        return shape.hidden_size % heads == 0
    # Its config counts longrope's factors by hidden size and heads alone.
    longrope = block.rope is not None and block.rope.type == "longrope"
    if shape.family == "phi3" and longrope:
        return shape.hidden_size // heads == shape.head_dim
    return True


def why_not(shape: ModelConfig) -> str:
    """Why no class of transformers can have the heads of a model (see `loading_family`)."""
    heads, hidden = shape.blocks[0].query_heads, shape.hidden_size
    said = f"transformers' {shape.family} cannot have {heads} query heads "
    if shape.family in _EVEN:
        said += f"with a hidden size of {hidden}, which is no multiple of that"
        return said + (", and mistral, which can, has no biases" if shape.family == "llama" else "")
    return said + f"of width {shape.head_dim}: it divides the hidden size {hidden} among them"


def uniform_config(config: dict[str, Any], pruned: ModelConfig) -> dict[str, Any]:
    """config.json of a model whose layers have one shape.

    Args:
        config: The dense model's.
        pruned: The pruned model's shape.

    Raises:
        ValueError: its layers differ, or no class has such heads; jobs are checked for both.
    """
    config = {key: value for key, value in config.items() if key != "strucprune"}
    if pruned.generic is not None:
        return with_widths(config, pruned) | {"model_type": pruned.family}
    shapes = {(b.query_heads, b.kv_heads, b.ffn_widths) for b in pruned.blocks}
    if len(shapes) != 1:
        raise ValueError("layout 'uniform' needs one shape for all layers")
    ((query_heads, kv_heads, ffn_widths),) = shapes
    family = loading_family(pruned)
    if family is None:
        raise ValueError(why_not(pruned))
    config[_width_key(pruned)] = ffn_widths[0]
    if "num_attention_heads" in config:
        config |= {"num_attention_heads": query_heads, "head_dim": pruned.head_dim}
    if "num_key_value_heads" in config or query_heads != kv_heads:
        config["num_key_value_heads"] = kv_heads
    if family != pruned.family:
        config = _as_mistral(config, pruned)
    return with_earlier_keys(config, family) | {"model_type": family}


def _width_key(pruned: ModelConfig) -> str:
    if pruned.family == "qwen3_moe" and pruned.blocks[0].names.router is not None:
        return "moe_intermediate_size"
    return _WIDTH_KEYS.get(pruned.family, "intermediate_size")


def _as_mistral(config: dict[str, Any], pruned: ModelConfig) -> dict[str, Any]:
    """A llama's config.json as a mistral's, with the keys whose defaults differ."""
    kept = {key: value for key, value in config.items() if key not in _LLAMA_ALONE}
    return {
        **kept,
        "architectures": ["MistralForCausalLM"],
        "max_position_embeddings": pruned.max_position_embeddings,
        "num_key_value_heads": pruned.blocks[0].kv_heads,
        "sliding_window": None,
        "transformers_version": _LEAST_RELEASE,
    }
