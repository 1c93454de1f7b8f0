"""Errors for tensors that are missing, or that config.json does not promise. No torch.

The names of such tensors often show what the checkpoint is instead, and so what its owner can do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from strucprune_core.checkpoint.hostile_json import shown
from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.models.config import ModelConfig

_RESAVE = "load the model with transformers' AutoModelForCausalLM, and save it with save_pretrained"
_ADAPTER, _CLASSIFIER = "belongs to an adapter (PEFT, LoRA)", "is the head of a classifier"
_CONFIG_OF_THESE = "Correct config.json, or use the one that was saved with these weights."

# What a pattern in a name says about the whole checkpoint; the first that matches any tensor wins.
_KINDS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"lora_|\.base_layer\.|modules_to_save|^base_model\."),
        _ADAPTER,
        "Merge the adapter into the model (PEFT's merge_and_unload), and save that.",
    ),
    (
        re.compile(
            r"\.(qweight|qzeros|scales|biases|g_idx|SCB|input_scale|k_scale|v_scale|"
            r"weight_(scale|scale_inv|scale_2|packed|shape|zero_point|g_idx))$|"
            r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$"
        ),
        "belongs to a quantised model",
        "Prune the unquantised model, and quantise the result.",
    ),
    (
        re.compile(r"(^|\.)(vision_\w+|visual|audio_\w+|multi_modal_projector|mm_projector)\."),
        "belongs to a multimodal model",
        "Use the config.json of the whole model, whose model_type is that of a multimodal one, or "
        "prune its language model alone.",
    ),
    (
        re.compile(
            r"^(score|classifier|qa_outputs|v_head|value_head|reward_head|regression_head)\b"
        ),
        f"{_CLASSIFIER} or reward model; only language models are pruned",
        "Prune the language model that it was trained from.",
    ),
)


def other_kind(names: Sequence[str]) -> InvalidCheckpoint | None:
    """The error for a model of any architecture that is an adapter or a classifier; else None.

    Args:
        names: All of its tensors. Other names say little where it is not known which are right.
    """
    for pattern, meaning, remedy in _KINDS:
        found = next((name for name in names if pattern.search(name)), None)
        if found is not None and meaning.startswith((_ADAPTER, _CLASSIFIER)):
            return InvalidCheckpoint(f"tensor {shown(found)} {meaning}", remedy=remedy)
    return None


def missing_tensor(name: str, head: str, unknown: Sequence[str]) -> InvalidCheckpoint:
    """The error for a tensor that config.json promises.

    Args:
        name: The tensor.
        head: The tensor of the LM head.
        unknown: Names in the files that config.json does not promise.
    """
    what = f"tensor '{name}' is missing"
    kind = _kind(unknown)
    if kind is not None:
        other, meaning, remedy = kind
        return InvalidCheckpoint(f"{what}; {shown(other)} {meaning}", remedy=remedy)
    for other in unknown:
        if other.endswith(f".{name}"):
            prefix = other.removesuffix(name)
            return InvalidCheckpoint(
                f"{what}; there is {shown(other)}, as wrapped by training code ({shown(prefix)})",
                remedy="Save the model itself (unwrapped, with save_pretrained).",
            )
    if name == head:
        return InvalidCheckpoint(
            f"{what}: config.json says that the head is not the embedding",
            remedy="If the model was trained with a tied head, set tie_word_embeddings to true in "
            "config.json. If it has no head, use a model with one (AutoModelForCausalLM).",
        )
    return InvalidCheckpoint(
        what, remedy="Copy the model again, or use the config.json that was saved with it."
    )


def unknown_tensor(
    name: str, config: ModelConfig, expected: Iterable[str], unknown: Sequence[str]
) -> InvalidCheckpoint:
    """The error for a tensor that config.json does not promise: pruning would lose it.

    Args:
        name: The tensor.
        config: The model.
        expected: Names of the model's tensors.
        unknown: All such names.
    """
    what = f"tensor {shown(name)} is not part of architecture '{config.model_type}'"
    kind = _kind(unknown)
    if kind is not None:
        other, meaning, remedy = kind
        return InvalidCheckpoint(f"tensor {shown(other)} {meaning}", remedy=remedy)
    layer = re.match(re.escape(config.names.layer).replace(r"\{\}", r"(\d{1,9})"), name)
    if layer is not None and int(layer[1]) >= config.layers:
        return InvalidCheckpoint(
            f"tensor {shown(name)} is of layer {layer[1]}, but config.json says that there are "
            f"{config.layers} layers",
            remedy=f"Correct config.json. (A layer that drafts further tokens is kept if "
            f"num_nextn_predict_layers counts it.) Or {_RESAVE}: that leaves it out.",
        )
    if name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in set(expected):
        return InvalidCheckpoint(
            f"{what}: it is a bias, and config.json says that there is none",
            remedy=f"{_CONFIG_OF_THESE} (Keys: attention_bias, mlp_bias.)",
        )
    return InvalidCheckpoint(what, remedy=_CONFIG_OF_THESE)


def misshaped_tensor(
    name: str, stored: tuple[int, ...], promised: tuple[int, ...]
) -> InvalidCheckpoint:
    """The error for a tensor of another shape than config.json promises."""
    return InvalidCheckpoint(
        f"tensor '{name}' has shape {stored}, but config.json promises {promised}",
        remedy=_CONFIG_OF_THESE,
    )


def _kind(names: Sequence[str]) -> tuple[str, str, str] | None:
    """A tensor that shows what the checkpoint is, the explanation, and the remedy."""
    for pattern, meaning, remedy in _KINDS:
        for name in names:
            if pattern.search(name):
                return name, meaning, remedy
    return None
