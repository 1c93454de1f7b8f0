"""Gradients of the streamed model against autograd of the real transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from strucprune_core.models import streaming, vocabulary
from strucprune_core.models.backward import backward_layer
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.vocabulary import embed, loss_gradients
from tests.core.models.families import VARIANTS, random_model
from tests.core.models.reference import random_tokens, stream_of

SEQUENCES, LENGTH = 2, 24
# The modules whose outputs are what a layer's sites compute, by family: attention's, the FFN's.
ATTENTION = ("self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attention.dense")
FFN = ("mlp", "fc2", "block_sparse_moe")


def decoder_layers(model: Any) -> list[Any]:
    """The first list of modules is that of the layers: experts' are inside them."""
    return next(list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def submodule(layer: Any, names: tuple[str, ...]) -> Any:
    by_name = dict(layer.named_modules())
    return next(by_name[name] for name in names if name in by_name)


def reference_gradients(model: Any, tokens: NDArray[np.int32]) -> dict[tuple[int, str], Tensor]:
    """Gradient of the summed loss at every layer's input and sites' outputs, (b, n, d) each."""
    kept: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str], tensor: Tensor) -> None:
        kept[key] = tensor

    for number, layer in enumerate(decoder_layers(model)):
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, n=number: keep(
                (n, "input"), args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        for kind, names in (("attention", ATTENTION), ("ffn", FFN)):
            submodule(layer, names).register_forward_hook(
                lambda module, args, output, key=(number, kind): keep(
                    key, output[0] if isinstance(output, tuple) else output
                )
            )
    ids = torch.from_numpy(tokens.astype(np.int64))
    logits = model(ids).logits[:, :-1].float()
    loss = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum"
    )
    gradients = torch.autograd.grad(loss, list(kept.values()))
    return {
        key: gradient.view(*tokens.shape, -1) for key, gradient in zip(kept, gradients, strict=True)
    }


def streamed_gradients(
    stream: ModelStream, tokens: NDArray[np.int32], scratch: Path
) -> dict[tuple[int, str], Tensor]:
    """The same, a layer at a time."""
    states = [np.empty((*tokens.shape, stream.config.hidden_size), dtype=np.float32)]
    embed(stream, tokens, states[0])
    for layer in range(stream.config.layers):
        states.append(stream.run_layer(layer, stream.layer(layer), states[-1]).hidden.numpy())
    flow = np.zeros_like(states[-1])
    d = flow.shape[-1]
    flow[:, :-1] = loss_gradients(
        stream, states[-1][:, :-1].reshape(-1, d), tokens[:, 1:].reshape(-1)
    ).reshape(len(tokens), -1, d)
    found: dict[tuple[int, str], Tensor] = {}
    for layer in reversed(range(stream.config.layers)):
        result = backward_layer(stream, layer, stream.layer(layer), states[layer], flow)
        found[layer, "input"] = result.at_input
        found |= {(layer, kind): gradient for kind, gradient in result.at_outputs.items()}
        flow = result.at_input.numpy()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_gradients_are_those_of_the_whole_model(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "VOCAB_TILE_ROWS", 100)
    monkeypatch.setattr(vocabulary, "HEAD_CHUNK_TOKENS", 20)
    model, tokens = random_model(variant), random_tokens(SEQUENCES, LENGTH, 512)
    found = streamed_gradients(stream_of(model, tmp_path / "model"), tokens, tmp_path)
    expected = reference_gradients(model, tokens)
    assert set(found) == set(expected)
    for key, gradient in expected.items():
        error = float((found[key] - gradient).norm() / gradient.norm())
        assert error < 1e-4, key
