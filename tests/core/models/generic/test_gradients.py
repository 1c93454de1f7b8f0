"""Gradients of the loss, led back through transformers' modules a layer at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from strucprune_core.models.streaming import ModelStream
from tests.core.models.generic.streams import tiny_stream
from tests.core.models.gradients import backward
from tests.core.models.reference import random_tokens

# Norms behind the FFN; a parallel residual; a decoder beside one that sees images; a shared expert
# beside routed ones; two FFNs in a layer.
ARCHITECTURES = ["olmo2", "stablelm", "gemma3", "exaone_moe", "longcat_flash"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_they_are_those_of_the_whole_model(name: str) -> None:
    """At the output of each FFN, before what follows it."""
    # Longcat's latent attention has a key and a value for each head.
    heads = {"num_key_value_heads": 4} if name == "longcat_flash" else {}
    stream, _, model = tiny_stream(name, **heads)
    tokens = random_tokens(2, 12, 100)
    found = [gradient for each in backward(stream, tokens) for _, gradient in each.at_outputs]
    outputs: list[Tensor] = []
    for module in _output_modules(stream, model):
        module.register_forward_hook(lambda module, given, output: outputs.append(output))
    ids = torch.from_numpy(tokens).long()
    logits = model(ids, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    )
    wanted = torch.autograd.grad(loss, outputs)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs.view(mine.shape), rtol=1e-3, atol=1e-5)


def _output_modules(stream: ModelStream, model: Any) -> list[Any]:
    """The modules of the matrices after an activation, layer by layer."""
    modules = []
    for layer, block in enumerate(stream.config.blocks):
        assert stream.modules is not None
        assert block.generic is not None
        for each in block.generic.feed_forwards:
            name = stream.config.names.layer.format(layer) + each.output
            path = stream.modules.names.parameter_of(name)[0]
            modules.append(model.get_submodule(path.rpartition(".")[0]))
    return modules
