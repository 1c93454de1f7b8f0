"""Experts that are read one at a time compute what they compute together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strucprune_core.evaluation.experts_check import masked, masked_output
from strucprune_core.evaluation.generic_check import run_whole
from strucprune_core.models.experts import expert_matrices, matrices_bytes
from strucprune_core.models.forward import final_hidden, run_batches
from strucprune_core.models.generic.layer_tensors import ExpertwiseLayer
from strucprune_core.models.generic.routed import ExpertSums
from strucprune_core.models.streaming import ModelStream
from strucprune_core.models.tiles import Tiles
from tests.core.models.generic.streams import tiny_stream

TOKENS = np.random.default_rng(0).integers(2, 60, (4, 16), dtype=np.int32)
ONE = Tiles(micro_batch_tokens=32, expert_by_expert=True)

# A tensor for each matrix of an expert, and a plain first layer; one for all experts, transposed,
# with biases; a class of its own; the same renamed; one whose rule of loading looks at shapes.
SAMPLE = ["deepseek_v3", "gpt_oss", "llama4_text", "granitemoe", "qwen3_vl_moe"]


def stream_of(name: str) -> ModelStream:
    changes = {"num_key_value_heads": 4} if name == "deepseek_v3" else {}
    return tiny_stream(name, **changes)[0]


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()), rtol=0)


@pytest.mark.parametrize("name", SAMPLE)
def test_the_result_is_the_same(name: str, tmp_path: Path) -> None:
    stream = stream_of(name)
    one = replace(stream, tiles=ONE)
    assert any(isinstance(one.layer(n), ExpertwiseLayer) for n in range(stream.config.layers))
    wanted = final_hidden(stream, TOKENS, tmp_path, lambda: None)
    close(final_hidden(one, TOKENS, tmp_path, lambda: None), wanted)
    assert one.modules is not None
    met, _ = run_whole(one.modules, one, TOKENS)
    close(met.numpy(), run_whole(one.modules, stream, TOKENS)[0].numpy())


@pytest.mark.parametrize("name", SAMPLE)
def test_scores_and_masks_are_the_same(name: str) -> None:
    stream = stream_of(name)
    modules, config = stream.modules, stream.config
    assert modules is not None
    layer = config.layers - 1
    experts = expert_matrices(config, layer)
    assert experts is not None
    hidden = np.random.default_rng(1).standard_normal((2, 16, config.hidden_size), dtype=np.float32)
    sums, outputs = [], []
    for each in (stream, replace(stream, tiles=ONE)):
        sums.append(ExpertSums(experts.count))
        with modules.recording(layer, sums[-1]):
            each.run_layer(layer, each.layer(layer), hidden)
        kept = range(1, experts.count)
        outputs.append(masked_output(each, modules, layer, each.layer(layer), kept, hidden))
    assert sums[0].tokens.sum() > 0
    assert sums[0].tokens.tolist() == sums[1].tokens.tolist()
    np.testing.assert_allclose(sums[0].squares, sums[1].squares, rtol=1e-4)
    close(outputs[1], outputs[0])


@pytest.mark.parametrize("name", SAMPLE)
def test_an_expert_is_read_once_in_a_pass(name: str, tmp_path: Path) -> None:
    """Whatever the number of micro-batches, and no expert that no token reaches."""
    changes = {"num_key_value_heads": 4} if name == "deepseek_v3" else {}
    stream, source, _ = tiny_stream(name, **changes)
    tiles = Tiles(micro_batch_tokens=2, expert_by_expert=True)
    one, config = replace(stream, tiles=tiles), stream.config
    modules, layer = stream.modules, config.layers - 1
    experts = expert_matrices(config, layer)
    assert modules is not None
    assert experts is not None
    row = np.random.default_rng(1).standard_normal(config.hidden_size, dtype=np.float32)
    hidden = np.tile(row, (3, 2, 1))  # All tokens choose the same experts.
    wanted_sums, sums = ExpertSums(experts.count), ExpertSums(experts.count)
    with modules.recording(layer, wanted_sums):
        wanted = stream.run_layer(layer, stream.layer(layer), hidden).hidden.numpy()
    source.reads.clear()
    weights = one.layer(layer)
    resident = dict(source.reads)
    assert set(resident.values()) == {1}
    found = np.empty_like(wanted)
    batches: list[slice] = []
    with modules.recording(layer, sums):
        for rows, trace in run_batches(one, layer, weights, hidden, tmp_path):
            found[rows] = trace.hidden.numpy()
            batches.append(rows)
    assert batches == [slice(0, 1), slice(1, 2), slice(2, 3)]
    close(found, wanted)
    assert sums.tokens.tolist() == wanted_sums.tokens.tolist()
    np.testing.assert_allclose(sums.gated, wanted_sums.gated, rtol=1e-4)
    used = int((sums.tokens > 0).sum())
    assert 0 < used < experts.count
    again = source.reads - type(source.reads)(resident)
    # Llama 4's class gives all tokens to each expert, and reads it for every micro-batch.
    assert (max(again.values()) == 1) == (name != "llama4_text")
    assert len(again) == used * (len(experts.own) + len(experts.sliced))


def test_routers_that_avoid_experts_read_the_others_once(tmp_path: Path) -> None:
    stream, source, _ = tiny_stream("deepseek_v3", num_key_value_heads=4)
    tiles = Tiles(micro_batch_tokens=2, expert_by_expert=True)
    one, config, layer = replace(stream, tiles=tiles), stream.config, stream.config.layers - 1
    modules, experts = stream.modules, expert_matrices(config, layer)
    assert modules is not None
    assert experts is not None
    kept = range(2, experts.count)
    hidden = np.random.default_rng(1).standard_normal((3, 2, config.hidden_size), dtype=np.float32)
    wanted = masked_output(stream, modules, layer, stream.layer(layer), kept, hidden)
    weights, found = one.layer(layer), np.empty_like(wanted)
    source.reads.clear()
    with masked(config, modules, layer, weights, kept) as tensors:
        for rows, trace in run_batches(one, layer, tensors, hidden, tmp_path):
            found[rows] = trace.hidden.numpy()
    close(found, wanted)
    assert set(source.reads.values()) == {1}


def test_experts_that_are_asked_in_another_way_are_read_for_each_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that asks for fewer tokens than there are computes what it did."""
    stream, _, _ = tiny_stream("deepseek_v3", num_key_value_heads=4)
    one = replace(stream, tiles=Tiles(micro_batch_tokens=2, expert_by_expert=True))
    layer, modules = stream.config.layers - 1, stream.modules
    assert modules is not None
    block = modules.model.model.layers[layer].mlp
    ask = type(block).forward

    def forward(self: Any, hidden: Any, *given: Any) -> Any:
        return torch.cat([ask(self, each[:, None]) for each in hidden.unbind(1)], 1)

    monkeypatch.setattr(type(block), "forward", forward)
    shape = (3, 2, stream.config.hidden_size)
    hidden = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    wanted = stream.run_layer(layer, stream.layer(layer), hidden).hidden.numpy()
    found = np.empty_like(wanted)
    for rows, trace in run_batches(one, layer, one.layer(layer), hidden, tmp_path):
        found[rows] = trace.hidden.numpy()
    close(found, wanted)


def test_a_layer_forgets_its_experts() -> None:
    stream = replace(stream_of("gpt_oss"), tiles=ONE)
    modules, config = stream.modules, stream.config
    assert modules is not None
    hidden = np.zeros((1, 4, config.hidden_size), dtype=np.float32)
    stream.run_layer(0, stream.layer(0), hidden)
    held = modules.model.model.layers[0].mlp.experts
    assert "down_proj" not in vars(held)
    assert held.down_proj.is_meta
    assert tuple(held.down_proj.shape) == modules.shapes()["model.layers.0.mlp.experts.down_proj"]


def test_a_layer_without_experts_stays_whole() -> None:
    stream = replace(stream_of("olmo2"), tiles=ONE)
    assert expert_matrices(stream.config, 0) is None
    assert matrices_bytes(stream.config, 0) == 0
    assert not isinstance(stream.layer(0), ExpertwiseLayer)
