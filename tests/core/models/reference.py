"""Random models of transformers, and our stream over the files that transformers wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from strucprune_core.checkpoint.index import open_checkpoint
from strucprune_core.checkpoint.reader import TensorReader
from strucprune_core.export.modeling_strucprune import (
    StrucPruneLlamaConfig,
    StrucPruneLlamaForCausalLM,
)
from strucprune_core.models.families import parse_config
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import next_token_logits
from strucprune_core.storage.local import LocalStore

SMALL = Tiles(micro_batch_tokens=64)

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
"""rope_parameters of each kind that most families take."""


def random_llama(widths: list[int] | None = None, **options: Any) -> Any:
    """A llama with random weights, norms and biases too; with `widths` a pruned one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if widths is None:
            model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **options}))
        else:
            layers = {"num_hidden_layers": len(widths), "intermediate_size": max(widths)}
            config = StrucPruneLlamaConfig(**{**SHAPE, **layers, **options})
            heads, groups = config.num_attention_heads, config.num_key_value_heads
            config.strucprune = {
                "format_version": 2,
                "layers": [
                    {"ffn": [width], "query_heads": heads, "kv_heads": groups} for width in widths
                ],
            }
            model_class: Any = StrucPruneLlamaForCausalLM
            model = model_class(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # transformers begins with ones and zeros
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def stream_of(model: Any, directory: Path) -> ModelStream:
    """Save a model with transformers and open the files."""
    model.save_pretrained(directory)
    return open_stream(directory)


def open_stream(directory: Path) -> ModelStream:
    index = open_checkpoint(LocalStore(directory))
    config = parse_config(json.loads(index.config_bytes))
    return ModelStream(config, TensorReader(index), torch.device("cpu"))


def random_tokens(sequences: int, length: int, vocabulary: int = 101) -> NDArray[np.int32]:
    draw = np.random.default_rng(0)
    return draw.integers(0, vocabulary, size=(sequences, length), dtype=np.int32)


def streamed_logits(
    stream: ModelStream,
    tokens: NDArray[np.int32],
    scratch: Path,
    tiles: Tiles = SMALL,
) -> Tensor:
    """Logits of all positions, (sequences x length x V)."""
    stream = replace(stream, tiles=tiles)
    hidden = final_hidden(stream, tokens, scratch, lambda: None)
    logits = next_token_logits(stream, hidden.reshape(-1, hidden.shape[-1]))
    return logits.reshape(*tokens.shape, -1)


@torch.inference_mode()
def reference_logits(model: Any, tokens: NDArray[np.int32]) -> Tensor:
    """The same by transformers."""
    logits: Tensor = model(torch.from_numpy(tokens.astype(np.int64))).logits
    return logits


# The modules whose outputs are what a layer's sites compute together, in one family or another.
_ATTENTION = ("self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attention.dense")
_FFN = ("mlp", "fc2", "block_sparse_moe")


def reference_gradients(model: Any, tokens: NDArray[np.int32]) -> dict[tuple[int, str], Tensor]:
    """Gradients of the windows' summed loss, by transformers and autograd, (b, n, d).

    Of each layer: at "input", "attention" and "ffn".
    """
    kept: dict[tuple[int, str], Tensor] = {}

    def keep_output(module: Any, key: tuple[int, str]) -> None:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept[key] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(hook)

    def keep_input(module: Any, key: tuple[int, str]) -> None:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            kept[key] = args[0] if args else kwargs["hidden_states"]

        module.register_forward_pre_hook(hook, with_kwargs=True)

    # The first list of modules is that of the layers: experts' are inside them.
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for number, layer in enumerate(layers):
        modules = dict(layer.named_modules())
        keep_input(layer, (number, "input"))
        for kind, names in (("attention", _ATTENTION), ("ffn", _FFN)):
            keep_output(next(modules[name] for name in names if name in modules), (number, kind))
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits = model(ids).logits[:, :-1].float()
    loss = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum"
    )
    gradients = torch.autograd.grad(loss, list(kept.values()))
    return {
        key: gradient.view(*tokens.shape, -1) for key, gradient in zip(kept, gradients, strict=True)
    }
