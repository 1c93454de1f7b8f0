"""Experts that are read one at a time compute what they compute together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strucprune_core.evaluation.experts_check import masked_output
from strucprune_core.evaluation.generic_check import run_whole
from strucprune_core.models.experts import expert_matrices, matrices_bytes
from strucprune_core.models.forward import final_hidden
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


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss"])
def test_only_used_experts_are_read_and_the_rest_once(name: str) -> None:
    changes = {"num_key_value_heads": 4} if name == "deepseek_v3" else {}
    stream, source, _ = tiny_stream(name, **changes)
    one, config = replace(stream, tiles=ONE), stream.config
    modules, layer = stream.modules, config.layers - 1
    experts = expert_matrices(config, layer)
    assert modules is not None
    assert experts is not None
    hidden = np.random.default_rng(1).standard_normal((1, 1, config.hidden_size), dtype=np.float32)
    source.reads.clear()
    weights = one.layer(layer)
    resident = dict(source.reads)
    assert set(resident.values()) == {1}
    sums = ExpertSums(experts.count)
    for _ in range(2):
        with modules.recording(layer, sums):
            one.run_layer(layer, weights, hidden)
    used = int((sums.tokens > 0).sum())
    assert 0 < used < experts.count
    again = source.reads - type(source.reads)(resident)
    assert set(again.values()) == {2}  # Once for each micro-batch.
    assert len(again) == used * (len(experts.own) + len(experts.sliced))


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
