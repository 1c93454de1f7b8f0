"""transformers' modules, a layer at a time: the whole model's logits, each weight read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from strucprune_core.evaluation.perplexity import perplexity
from strucprune_core.models.backward import layer_gradients
from strucprune_core.models.forward import final_hidden
from strucprune_core.models.generic.modules import HeadRule, decoder_layers
from strucprune_core.models.tiles import Tiles
from strucprune_core.models.vocabulary import next_token_logits
from tests.core.models.generic.streams import tiny_stream
from tests.coverage.detect import layer_calls

TOKENS = np.random.default_rng(0).integers(3, 100, size=(3, 16), dtype=np.int32)
# A factor of the logits; ALiBi; a bias of the head; a tied head; routed and shared experts.
ARCHITECTURES = ["granite", "bloom", "phi", "starcoder2", "deepseek_v3"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    # deepseek's latent attention has a key and a value for each head.
    heads = {"num_key_value_heads": 4} if name == "deepseek_v3" else {}
    stream, _, model = tiny_stream(name, **heads)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(TOKENS).long(), use_cache=False).logits
    hidden = final_hidden(stream, TOKENS, tmp_path, lambda: None)
    found = next_token_logits(stream, hidden.reshape(-1, hidden.shape[-1])).view_as(wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("micro_batch_tokens", [16, 4096])
def test_each_weight_is_read_once_whatever_the_micro_batches(
    tmp_path: Path, micro_batch_tokens: int
) -> None:
    stream, source, _ = tiny_stream("olmo2")
    source.reads.clear()
    tiles = Tiles(micro_batch_tokens=micro_batch_tokens)
    final_hidden(replace(stream, tiles=tiles), TOKENS, tmp_path, lambda: None)
    layers = [count for name, count in source.reads.items() if ".layers." in name]
    assert layers
    assert set(layers) == {1}


def test_experts_are_joined_once_whatever_the_micro_batches(tmp_path: Path) -> None:
    stream, _, _ = tiny_stream("deepseek_v3", num_key_value_heads=4)
    assert stream.modules is not None
    joined: list[int] = []
    plain = stream.modules.names.parameters

    def parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        joined.append(len(tensors))
        return plain(tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.modules.names, "parameters", parameters)
        tiles = Tiles(micro_batch_tokens=16)
        final_hidden(replace(stream, tiles=tiles), TOKENS, tmp_path, lambda: None)
    assert len(joined) == stream.config.layers


def test_a_config_that_asks_for_the_routers_loss_is_run_without(tmp_path: Path) -> None:
    stream, _, model = tiny_stream("qwen2_moe", output_router_logits=True)
    tokens = torch.from_numpy(TOKENS).long()
    with torch.inference_mode():
        logits = model(tokens, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert perplexity(stream, TOKENS, tmp_path) == pytest.approx(float(loss.exp()), rel=1e-5)


def test_gradients_are_those_of_the_layer_itself() -> None:
    stream, _, model = tiny_stream("glm4")
    tokens = torch.from_numpy(TOKENS).long()
    _, layers = decoder_layers(model)
    with torch.inference_mode():
        stream.layer(1)  # Whatever was read so must not matter.
    call = layer_calls(model, layers, tokens)[1]
    hidden = (call.given[0] if call.given else call.options["hidden_states"]).detach()
    at_output = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    x = hidden.clone().requires_grad_()
    layer = list(layers)[1]
    given, options = (x, *call.given[1:]), call.options
    output = layer(*given, **options)
    output = output[0] if isinstance(output, tuple) else output
    names = ["mlp.down_proj.weight", "mlp.gate_up_proj.weight", "self_attn.q_proj.weight"]
    weights = [layer.get_parameter(name) for name in names]
    at_input, *wanted = torch.autograd.grad(output, (x, *weights), at_output)
    found_input, found = layer_gradients(stream, 1, stream.whole_layer(1), names, hidden, at_output)
    torch.testing.assert_close(found_input, at_input, rtol=1e-5, atol=1e-6)
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_layer_has_no_weights_once_it_has_run() -> None:
    stream, _, _ = tiny_stream("olmo2")
    modules = stream.modules
    assert modules is not None
    hidden = np.zeros((1, 4, stream.config.hidden_size), dtype=np.float32)
    stream.run_layer(1, stream.layer(1), hidden)
    held = [
        name
        for name, parameter in modules.model.named_parameters()
        if ".layers." in name and not parameter.is_meta
    ]
    assert held == []


def test_perplexity_is_that_of_the_whole_model(tmp_path: Path) -> None:
    stream, _, model = tiny_stream("gpt_bigcode")
    tokens = torch.from_numpy(TOKENS).long()
    with torch.inference_mode():
        logits = model(tokens, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert perplexity(stream, TOKENS, tmp_path) == pytest.approx(float(loss.exp()), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt_bigcode", "biogpt"])
def test_the_head_takes_more_tokens_than_the_model_has_positions(name: str) -> None:
    stream, _, _ = tiny_stream(name)
    assert stream.modules is not None
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(
        stream.config.max_position_embeddings + 1, stream.config.hidden_size, generator=generator
    )
    met = stream.modules.head_input(hidden)
    torch.testing.assert_close(met[-4:], stream.modules.head_input(hidden[-4:]))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("olmo2", HeadRule(1.0, None)),
        ("cohere", HeadRule(0.0625, None)),
        ("recurrent_gemma", HeadRule(1.0, 30.0)),
    ],
)
def test_what_becomes_of_logits_is_measured(name: str, rule: HeadRule) -> None:
    stream, _, _ = tiny_stream(name)
    assert stream.modules is not None
    assert stream.modules.head_rule(stream.config.hidden_size) == rule
