"""Every family in bfloat16: near float32, with norms, softmax and residual stream in float32."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strucprune_core.models.forward import final_hidden
from strucprune_core.models.precision import is_operand, layer_weights_bytes
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tensors import layer_tensors
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import token_losses
from tests.core.models.families import VARIANTS, random_model
from tests.core.models.reference import random_tokens, stream_of, streamed_logits

# Of the largest logit. bfloat16 keeps 8 bits, and random models of these widths magnify rounding.
LOGITS = 0.05
# Of the mean loss of a token, in nats: perplexity differs by half a per cent at most.
LOSS = 0.005
PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu")
IN_FLOAT32 = ("_softmax", "rsqrt", "native_layer_norm", "pow", "mean", "tanh", "index_add_")


class Dtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The floating-point dtypes that operations are given, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.seen[func.overloadpacket.__name__].add(leaf.dtype)
        return func(*args, **kwargs)


def narrow(stream: ModelStream) -> ModelStream:
    return replace(stream, dtype=torch.bfloat16)


def losses(stream: ModelStream, tokens: np.typing.NDArray[np.int32], scratch: Path) -> float:
    hidden = final_hidden(stream, tokens, scratch, lambda: None)[:, :-1]
    flat = hidden.reshape(-1, hidden.shape[-1])
    return float(token_losses(stream, flat, tokens[:, 1:].reshape(-1)).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_near_float32(tmp_path: Path, variant: str) -> None:
    stream = stream_of(random_model(variant), tmp_path / "model")
    tokens = random_tokens(3, 40, 512)
    wanted = streamed_logits(stream, tokens, tmp_path)
    for tiles in (Tiles(micro_batch_tokens=80), Tiles(micro_batch_tokens=80, weight_rows=13)):
        found = streamed_logits(narrow(stream), tokens, tmp_path, tiles)
        difference = (found - wanted).abs().flatten(0, 1)
        # After rounding, a router near a tie may choose another expert.
        share = 0.9 if any(block.names.router for block in stream.config.blocks) else 1.0
        worst = float(difference.amax(-1).quantile(share) / wanted.abs().max())
        assert 0.0 < worst < LOGITS
    gap = losses(narrow(stream), tokens, tmp_path) - losses(stream, tokens, tmp_path)
    assert abs(gap) < LOSS


@pytest.mark.parametrize("variant", VARIANTS)
def test_products_alone_are_bfloat16(tmp_path: Path, variant: str) -> None:
    stream = narrow(stream_of(random_model(variant), tmp_path / "model"))
    hidden = torch.randn(2, 20, stream.config.hidden_size)
    for layer in range(stream.config.layers):
        weights = stream.layer(layer)
        with Dtypes() as dtypes:
            trace = stream.forward_layer(layer, hidden, weights, record=("ffn", "attention"))
        assert trace.hidden.dtype == torch.float32
        assert torch.bfloat16 in set().union(*(dtypes.seen[name] for name in PRODUCTS))
        for name in IN_FLOAT32:
            assert dtypes.seen[name] <= {torch.float32}, (name, dtypes.seen[name])
        assert {seen.rows.dtype for seen in trace.inputs.values()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", ["llama", "mixtral", "gpt2"])
def test_matrices_take_half_the_bytes(tmp_path: Path, variant: str) -> None:
    stream = narrow(stream_of(random_model(variant), tmp_path / "model"))
    shapes, weights = layer_tensors(stream.config, 0), stream.layer(0)
    for role, shape in shapes.items():
        operand = is_operand(stream.config, 0, role, shape)
        assert weights[role].dtype == (torch.bfloat16 if operand else torch.float32)
    held = sum(tensor.nbytes for tensor in weights.values())
    assert held == layer_weights_bytes(stream.config, 0, operand=2)
    assert held < 0.55 * layer_weights_bytes(stream.config, 0)


def test_routers_and_norms_stay(tmp_path: Path) -> None:
    stream = narrow(stream_of(random_model("mixtral"), tmp_path / "model"))
    weights, names = stream.layer(0), stream.config.blocks[0].names
    assert weights[f"{names.router}.weight"].dtype == torch.float32
    assert weights[f"{names.attention_norm}.weight"].dtype == torch.float32
