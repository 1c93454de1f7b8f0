"""A checkpoint run by transformers, one decoder layer at a time: the reload check's reference.

The model is built by transformers from the written config.json on the meta device, so a
wrong name, shape or width fails here; then its decoder layers are filled from the written shards
and run one at a time, so a checkpoint of any size is checked in the memory of one layer.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import __version__ as transformers_version

from strucprune_core.errors import InvalidCheckpoint
from strucprune_core.export.modeling_strucprune_llama import (
    StrucPruneLlamaConfig,
    StrucPruneLlamaForCausalLM,
)
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import embed, next_token_logits

REFERENCE = f"transformers {transformers_version}"
_CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    StrucPruneLlamaConfig.model_type: (StrucPruneLlamaConfig, StrucPruneLlamaForCausalLM),
}


@torch.inference_mode()
def reference_logits(
    stream: ModelStream, config_json: bytes, tensor_names: set[str], tokens: NDArray[np.int32]
) -> Tensor:
    """Logits of a checkpoint as transformers computes them.

    Args:
        stream: The checkpoint's tensors. The decoder layers that run are transformers' own.
        config_json: Its config.json.
        tensor_names: Names of all its tensors.
        tokens: Token ids, (sequences x length).

    Returns:
        Logits of the last position of each sequence, (sequences x V) float32.

    Raises:
        InvalidCheckpoint: transformers expects other tensors than there are.
    """
    model = _skeleton(config_json)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    difference = sorted((set(model.state_dict()) ^ tensor_names) - tied)[:3]
    if difference:
        raise InvalidCheckpoint(
            f"transformers expects other tensors than the checkpoint holds: {difference}"
        )
    hidden = _embedded(stream, tokens)
    positions = torch.arange(tokens.shape[1], device=hidden.device)[None]
    rotary = type(model.model.rotary_emb)(model.config).to(hidden.device)
    rotations = rotary(hidden, positions)
    for index, layer in enumerate(model.model.layers):
        layer.load_state_dict(dict(stream.layer(index)), assign=True, strict=True)
        output = layer(hidden, position_ids=positions, position_embeddings=rotations)
        hidden = output[0] if isinstance(output, tuple) else output
        layer.to("meta")
    return next_token_logits(stream, hidden[:, -1].cpu().numpy())


def _skeleton(config_json: bytes) -> Any:
    """The model on the meta device: shapes and names, no memory."""
    config_class, model_class = _CLASSES[json.loads(config_json)["model_type"]]
    config = config_class.from_dict(json.loads(config_json))
    config._attn_implementation = "sdpa"  # Causal without a mask; eager would need one.
    with torch.device("meta"):
        return model_class(config).eval()


def _embedded(stream: ModelStream, tokens: NDArray[np.int32]) -> Tensor:
    out = np.empty((*tokens.shape, stream.adapter.config.hidden_size), dtype=np.float32)
    embed(stream, tokens, out)
    return torch.from_numpy(out).to(stream.device)
